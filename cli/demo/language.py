"""The demo's language model: a byte-level Llama of 0.8 million parameters that trains in a minute on one core.

A token is a byte, so every loss is in nats per byte and any text can be read. torch, transformers and peft are imported
inside the functions: they run in the workshop's processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adapterhub.cli.demo.training import Report, Schedule, add_lora, fit, largest_changes

if TYPE_CHECKING:
    from torch import Tensor

    Selection = dict[str, tuple[Tensor, Tensor]]
    """By weight name: which entries (bool) and what is added there (float32), both of the weight's shape."""

CONTEXT_BYTES = 96
"""Length of a training passage, and of the passages that losses are measured on."""

BATCH = 4
END = "<|end|>"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
"""The model only continues text, so a conversation is its messages one after the other."""


def new_model(seed: int, *, hidden: int = 128, layers: int = 4) -> Any:
    """A LlamaForCausalLM with random weights over 256 bytes and the end sign; 0.84 M parameters as given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=256,
            eos_token_id=256,
            pad_token_id=256,
        )
    )


def new_tokenizer() -> Any:
    """A fast tokenizer whose token ids 0 to 255 are the bytes themselves and 256 is the end sign."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={sign: byte for byte, sign in _signs_of_bytes().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _signs_of_bytes() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them.

    Source: transformers/convert_slow_tokenizer.py, bytes_to_unicode.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in sorted(printable)} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def train(model: Any, text: bytes, schedule: Schedule, seed: int, report: Report) -> None:
    """Train all weights of the model in place on passages drawn from the text."""
    fit(list(model.parameters()), _losses(model, text, seed), schedule, report)


def tune_lora(model: Any, text: bytes, schedule: Schedule, seed: int, report: Report) -> Any:
    """The model wrapped by peft with a LoRA trained on the text; the model's own weights stay as they are."""
    tuned = add_lora(model, LORA_TARGETS, seed, task_type="CAUSAL_LM")
    fit([p for p in tuned.parameters() if p.requires_grad], _losses(tuned, text, seed), schedule, report)
    return tuned


def tune_sparse(
    model: Any, text: bytes, schedule: Schedule, seed: int, report: Report, density: float = 0.05
) -> Selection:
    """A sparse fine-tuning of the model: by weight name (which entries: bool, delta: float32), both of its shape.

    Three steps: tune everything for a third of the time, keep the entries that moved most, then start again from the
    model's own weights and train those entries alone. The model is left tuned. Source: LT-SFT, arXiv:2110.07560.
    """
    before = weights(model)
    first = Schedule(max(1, schedule.steps // 3), schedule.lr)
    second = Schedule(schedule.steps - first.steps, schedule.lr)
    fit(list(model.parameters()), _losses(model, text, seed), first, _part(report, 0, schedule.steps))
    kept = largest_changes(before, weights(model), density)
    restore(model, before)
    moving = {weight: kept[name].float() for name, weight in model.named_parameters() if name in kept}
    fit(list(moving), _losses(model, text, seed + 1), second, _part(report, first.steps, schedule.steps), moving)
    after = weights(model)
    return {name: (mask, (after[name] - before[name]) * mask) for name, mask in kept.items() if mask.any()}


def tune_mask(
    model: Any, text: bytes, schedule: Schedule, seed: int, report: Report, density: float = 0.3
) -> Selection:
    """A full fine-tuning and the mask of its largest changes: by weight name (mask: bool, delta: float32).

    The delta is whole; the mask selects what of it the patch grafts onto the base. The model is left tuned.
    Source: skill localisation by grafting, arXiv:2302.06600.
    """
    before = weights(model)
    train(model, text, schedule, seed, report)
    after = weights(model)
    kept = largest_changes(before, after, density)
    return {name: (mask, after[name] - before[name]) for name, mask in kept.items() if mask.any()}


def nats_per_byte(model: Any, text: bytes, limit_bytes: int | None = None) -> float:
    """Mean negative log-likelihood of the text's bytes, each seen with what precedes it in its passage of 96 bytes.

    limit_bytes: about how many bytes to look at, in passages spread evenly over the text so that every document has its
    share; None looks at all.
    """
    import torch

    tokens = _tokens(text)
    whole = (len(tokens) - 1) // CONTEXT_BYTES
    count = whole if limit_bytes is None else min(whole, max(1, limit_bytes // CONTEXT_BYTES))
    starts = torch.arange(count)[:, None] * whole // count * CONTEXT_BYTES
    passages = tokens[starts + torch.arange(CONTEXT_BYTES + 1)]  # (n, 97)
    model.eval()
    with torch.inference_mode():
        total: float = sum(float(_loss(model, part)) * len(part) for part in torch.split(passages, 64))
    model.train()
    return total / count


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of the model's parameters by name; tied ones appear once."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def restore(model: Any, before: dict[str, Tensor], delta: dict[str, Tensor] | None = None) -> None:
    """Set the model's parameters to `before`, plus `delta` where it has the parameter's name."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(before[name])
            if delta and name in delta:
                weight.add_(delta[name])


def _part(report: Report, start: int, total: int) -> Report:
    """A report of one part of a longer work: its steps count from `start` and are out of `total`."""
    return lambda done, _, loss: report(start + done, total, loss)


def _losses(model: Any, text: bytes, seed: int) -> Callable[[], Tensor]:
    import torch

    tokens = _tokens(text)
    draws = torch.Generator().manual_seed(seed)
    window = torch.arange(CONTEXT_BYTES + 1)

    def loss_of_step() -> Tensor:
        starts = torch.randint(0, len(tokens) - CONTEXT_BYTES, (BATCH, 1), generator=draws)
        return _loss(model, tokens[starts + window])

    return loss_of_step


def _loss(model: Any, passages: Tensor) -> Tensor:
    """Mean loss of predicting each byte of passages (n, t + 1) from those before it."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=passages[:, :-1], use_cache=False).logits  # (n, t, 257)
    return cross_entropy(logits.flatten(0, 1), passages[:, 1:].flatten())


def _tokens(text: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
