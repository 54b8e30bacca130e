"""alora: a LoRA that acts on tokens from its last invocation on, as peft's LORA with alora_invocation_tokens saves it.

The weight scales what is added. Source: arXiv:2504.12397, as peft saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.merging.live import by_name, cache_of, is_cached, override
from adapterhub.merging.live_lora import Call, Delta, attach_deltas
from adapterhub.merging.peft_adapter import Adapter, Module
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import ALORA, scaling

if TYPE_CHECKING:
    import torch


def _delta(adapter: Adapter, module: Module, fields: Mapping[str, torch.Tensor], call: Call) -> Delta:
    """s · B A x from the start of the invocation on, and 0 before it or without one."""
    A, B = fields["A"], fields["B"]
    scale = scaling(adapter, module, A.shape[0])

    def delta(x: torch.Tensor) -> torch.Tensor:
        import torch

        starts = torch.tensor([x.shape[1] - (offset or 0) for offset in call.offsets], device=x.device)
        is_active = torch.arange(x.shape[1], device=x.device) >= starts[:, None]  # (batch, tokens)
        return scale * (x.to(A.dtype) @ A.T @ B.T) * is_active[..., None]

    return delta


_OFFSETS = "_alora_offsets"
"""Attribute of a cache: where the invocation began in the texts that it holds, each sequence's own."""


def _watch(model: Any, adapter: Adapter, call: Call) -> None:
    """A call that goes on from a cache is of the texts in that cache, whatever other texts were read meanwhile."""
    tokens = adapter.config["alora_invocation_tokens"]

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = by_name(original, args, kwargs)
        if not is_cached(given):
            ids = given.get("input_ids")
            rows = [[]] * len(given["inputs_embeds"]) if ids is None else ids.tolist()
            call.offsets = [offset(row, tokens) for row in rows]
        else:
            call.offsets = getattr(cache_of(given), _OFFSETS, call.offsets)
        found = original(**given)
        cache = cache_of(found) if isinstance(found, Mapping) else None
        if cache is not None:
            setattr(cache, _OFFSETS, call.offsets)
        return found

    override(model, "forward", forward)


def offset(row: Sequence[int], tokens: Sequence[int]) -> int | None:
    """How far from the end of `row` the last occurrence of `tokens` begins; None where there is none."""
    starts = (len(row) - back for back in range(len(tokens), len(row) + 1))
    found = next((start for start in starts if row[start : start + len(tokens)] == tokens), None)
    return None if found is None else len(row) - found


SPEC = RuntimeSpec(
    name="alora",
    summary="A LoRA that acts from its invocation tokens on",
    source="arXiv:2504.12397, as peft saves it",
    attach=attach_deltas("alora", ALORA, _delta, watch=_watch),
)
