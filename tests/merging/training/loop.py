"""A real Trainer for a few steps on the CPU, and the weights that our engine makes of the patch it left."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from tests.merging.exactness.compare import fold

TOKENS = [[(7 * row + 3 * place) % 32 for place in range(8)] for row in range(16)]


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    """Plain steps with everything on that could move a frozen weight: weight decay, clipping, a schedule."""
    chosen = {"max_steps": 5, "learning_rate": 1e-2, "weight_decay": 0.1, "per_device_train_batch_size": 4} | more
    quiet: dict[str, Any] = {"save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder / "trainer"), **quiet, **chosen)


def train(
    model: PreTrainedModel,
    folder: Path,
    *callbacks: TrainerCallback,
    optimizer: torch.optim.Optimizer | None = None,
    trainer: type[Trainer] = Trainer,
    **more: Any,
) -> None:
    data: Any = [{"input_ids": row, "labels": row} for row in TOKENS]
    made: Any = trainer(
        model=model,
        args=arguments(folder, **more),
        train_dataset=data,
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )
    made.train()


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def folded(base: Path, patch: Path, out: Path) -> dict[str, torch.Tensor]:
    """What the base becomes with the patch in it, by parameter."""
    return load_file(fold(base, patch, out) / "model.safetensors")


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}
