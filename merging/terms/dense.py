"""dense: W + weight · delta, every entry stored.

Fields: delta, the shape of W (or its transpose), any float dtype. Options: transpose, True where the site stores
(in, out) and the delta (out, in). Source: a task vector, arXiv:2212.04089.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.tensors import as_matrix
from adapterhub.merging.registry import TRANSPOSE, Apply, Part, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _oriented(part: Part) -> torch.Tensor:
    delta = part.fields["delta"]
    return delta.T if part.options.get("transpose") else as_matrix(delta)


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · delta."""

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for part in parts:
            tile.add_(_oriented(part)[start:stop].to(tile.dtype), alpha=part.weight)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    return float(part.fields["delta"].double().norm()) * abs(part.weight)


SPEC = TermSpec(
    name="dense",
    summary="W + delta, every entry stored",
    fields={"delta": stored("W")},
    effect="additive",
    order=40,
    prepare=_prepare,
    norm=_norm,
    options=(TRANSPOSE,),
)
