"""replace: W + weight · (value - W); with weight 1 the value itself, exactly.

Fields: value, the shape of W, any float dtype. A weight k interpolates from the base (0) to the value (1). Acts before
all other terms. Where several replace one site, each counts as its delta against the base.
Source: peft's modules_to_save and LN tuning store values, not deltas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.tensors import as_matrix
from adapterhub.merging.registry import Apply, Part, TermSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · (value - W); a single weight of 1 copies the value."""

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        values = [as_matrix(part.fields["value"])[start:stop].to(tile.dtype) for part in parts]
        if len(parts) == 1 and parts[0].weight == 1.0:
            tile.copy_(values[0])
            return
        base = tile.clone()
        for part, value in zip(parts, values, strict=True):
            tile.add_(value - base, alpha=part.weight)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: how far a value is from W cannot be told without W."""


SPEC = TermSpec(
    name="replace",
    summary="A stored value instead of W",
    fields=("value",),
    effect="replace",
    order=0,
    prepare=_prepare,
    norm=_norm,
)
