"""The demo's image classifier: a vision transformer of 0.24 million parameters that reads 8x8 digits.

torch, transformers and peft are imported inside the functions: they run in the workshop's processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adapterhub.cli.demo.training import Report, Schedule, add_lora, fit

if TYPE_CHECKING:
    from torch import Tensor

    from adapterhub.cli.demo.digits import Digits, Images

BATCH = 32
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def new_model(seed: int) -> Any:
    """A ViTForImageClassification with random weights: 8x8 pixels in patches of 4, ten digits."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    digits = [str(digit) for digit in range(10)]
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=3,
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            initializer_range=0.06,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(digits)),
            label2id={digit: index for index, digit in enumerate(digits)},
        )
    )


def new_processor() -> Any:
    """The image processor saved with the model: any image to (3, 8, 8), pixels from -1 to 1."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 8, "width": 8})


def train(model: Any, digits: Digits, schedule: Schedule, seed: int, report: Report) -> None:
    """Train all weights of the model in place on the digits."""
    fit(list(model.parameters()), _losses(model, digits, seed), schedule, report)


def tune_lora(model: Any, digits: Digits, schedule: Schedule, seed: int, report: Report) -> Any:
    """The model wrapped by peft with a LoRA trained on the digits; the model's own weights stay as they are."""
    tuned = add_lora(model, LORA_TARGETS, seed)
    fit([p for p in tuned.parameters() if p.requires_grad], _losses(tuned, digits, seed), schedule, report)
    return tuned


def accuracy(model: Any, digits: Digits) -> float:
    """Fraction of the digits that the model names rightly."""
    import torch

    model.eval()
    with torch.inference_mode():
        named = model(pixel_values=_pixels(digits.images)).logits.argmax(-1)
    model.train()
    return float((named == torch.from_numpy(digits.labels)).float().mean())


def _losses(model: Any, digits: Digits, seed: int) -> Callable[[], Tensor]:
    """Cross-entropy of one batch after another."""
    import torch

    pixels, labels = _pixels(digits.images), torch.from_numpy(digits.labels)
    draws = torch.Generator().manual_seed(seed)

    def loss_of_step() -> Tensor:
        chosen = torch.randint(0, len(labels), (BATCH,), generator=draws)
        logits = model(pixel_values=pixels[chosen]).logits
        return torch.nn.functional.cross_entropy(logits, labels[chosen])

    return loss_of_step


def _pixels(images: Images) -> Tensor:
    """What `new_processor` makes of the images: (n, 8, 8) of uint8 to (n, 3, 8, 8) of float32 in [-1, 1]."""
    import torch

    scaled = torch.from_numpy(images).float().div(255).sub(0.5).div(0.5)
    return scaled[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, 8, 8)
