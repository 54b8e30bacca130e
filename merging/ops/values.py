"""Values that stand in place of W: put whole, or interpolated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from adapterhub.merging.ops.tensors import as_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


class Put(Protocol):
    """Changes a tile that holds rows start..stop of W, in place."""

    def __call__(self, tile: torch.Tensor, start: int, stop: int) -> None: ...


def put(values: Sequence[torch.Tensor], weights: Sequence[float]) -> Put:
    """What changes a tile to W + Σ weights[i] · (values[i] - W); a single weight of 1 copies the value, exactly.

    values: of W's shape, any float dtype, not modified.
    """

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        rows = [as_matrix(value)[start:stop].to(tile.dtype) for value in values]
        if len(rows) == 1 and weights[0] == 1.0:
            tile.copy_(rows[0])
            return
        base = tile.clone()
        for weight, value in zip(weights, rows, strict=True):
            tile.add_(value - base, alpha=weight)

    return apply
