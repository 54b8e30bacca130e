"""Passes over the tiles of a tensor: torch's own, or for much bfloat16 on a CPU compiled ones, fewer.

Both give the same values bit for bit; of sums over entries the last digits may differ. A pass of torch costs 0.13 ns an
entry, so a merge of models, whose arithmetic is next to nothing, is as fast as its passes are few.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import torch

    from adapterhub.merging.ops.kernels import Array

Weighted: TypeAlias = "Sequence[tuple[float, torch.Tensor]]"

COMPILED_ENTRIES = 1 << 28
"""Entries of a merge from which on loading the compiled passes costs less than it saves: half a second, once."""


class Passes:
    """Those that torch has, for any floats on any device."""

    def widened(self, rows: torch.Tensor, wide: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Two new contiguous copies of a matrix in a wider dtype."""
        import torch

        first = rows.to(wide, copy=True, memory_format=torch.contiguous_format)
        return first, first.clone()

    def wide(self, rows: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        """A matrix in a wider dtype, which is not to be written to: the very one where it has that already."""
        return rows.to(wide)

    def difference(self, tuned: torch.Tensor, base: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        """tuned - base in a wider dtype; new, contiguous."""
        import torch

        return tuned.to(wide, copy=True, memory_format=torch.contiguous_format).sub_(base.to(wide))

    def products(self, first: torch.Tensor, second: torch.Tensor) -> tuple[float, float, float]:
        """first · first, first · second and second · second in float64; of one shape."""
        x, y = first.reshape(-1).double(), second.reshape(-1).double()
        return float(x.dot(x)), float(x.dot(y)), float(y.dot(y))

    def add_differences(self, tile: torch.Tensor, weighted: Weighted, base: torch.Tensor) -> None:
        """tile += Σ weight · (tuned - base) in place, in order; all of one shape, the tile contiguous."""
        before = base.to(tile.dtype)
        for weight, tuned in weighted:
            change = tuned.to(tile.dtype, copy=True)
            tile.add_(change.sub_(before), alpha=weight)

    def merged(
        self, rows: torch.Tensor, of_rows: float, weighted: Weighted, wide: torch.dtype, dtype: torch.dtype
    ) -> tuple[torch.Tensor, float, float]:
        """What `widened`, `add_differences` from those rows themselves and `rounded` make of a matrix, and give.

        of_rows: what of them is added to them before.
        """
        before, tile = self.widened(rows, wide)
        if of_rows:
            tile.add_(before, alpha=of_rows)
        self.add_differences(tile, weighted, rows)
        return self.rounded(before, tile, dtype)

    def rounded(
        self, before: torch.Tensor, tile: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, float, float]:
        """The tile rounded to a dtype, to nearest even, Σ (before - tile)², and Σ (rounded - tile)².

        before, tile: contiguous, of one shape and dtype; `before` is used up. The sums are not finite where an entry
        is not, or where squares overflow.
        """
        result = tile.to(dtype)
        changed = _square(before.sub_(tile))
        lost = _square(before.copy_(result).sub_(tile)) if dtype != tile.dtype else 0.0
        return result, changed, lost


class CompiledPasses(Passes):
    """Of `kernels.py` where they fit: bfloat16 to float32 and back, on a CPU."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    def widened(self, rows: torch.Tensor, wide: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if not _is_half(rows) or wide != torch.float32:
            return super().widened(rows, wide)
        first, second = torch.empty(rows.shape, dtype=wide), torch.empty(rows.shape, dtype=wide)
        self._kernels.widen(_bits(rows), _bits(first), _bits(second))
        return first, second

    def wide(self, rows: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        import torch

        if not _is_half(rows) or wide != torch.float32:
            return super().wide(rows, wide)
        result = torch.empty(rows.shape, dtype=wide)
        self._kernels.widen_once(_bits(rows), _bits(result))
        return result

    def difference(self, tuned: torch.Tensor, base: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        import torch

        if not _is_half(tuned) or not _is_half(base) or wide != torch.float32:
            return super().difference(tuned, base, wide)
        result = torch.empty(tuned.shape, dtype=wide)
        self._kernels.difference(_bits(tuned), _bits(base), result.view(-1).numpy())
        return result

    def products(self, first: torch.Tensor, second: torch.Tensor) -> tuple[float, float, float]:
        if not _is_half(first) or not _is_half(second):
            return super().products(first, second)
        found = self._kernels.products(_bits(first), _bits(second))
        return float(found[0]), float(found[1]), float(found[2])

    def add_differences(self, tile: torch.Tensor, weighted: Weighted, base: torch.Tensor) -> None:
        import torch

        if tile.dtype != torch.float32 or not all(map(_is_half, (base, *(tuned for _, tuned in weighted)))):
            super().add_differences(tile, weighted, base)
            return
        for weight, tuned in weighted:
            self._kernels.add_difference(_bits(tuned), _bits(base), tile.view(-1).numpy(), weight)

    def merged(
        self, rows: torch.Tensor, of_rows: float, weighted: Weighted, wide: torch.dtype, dtype: torch.dtype
    ) -> tuple[torch.Tensor, float, float]:
        import torch

        tensors = [rows, *(tuned for _, tuned in weighted)]
        if wide != torch.float32 or dtype != torch.bfloat16 or not all(map(_is_half, tensors)):
            return super().merged(rows, of_rows, weighted, wide, dtype)
        source, *tuned = map(_bits, tensors)
        result = torch.empty(rows.shape, dtype=dtype)
        weights = np.array([weight for weight, _ in weighted], np.float32)
        changed, lost = self._kernels.merged(source, np.float32(of_rows), tuple(tuned), weights, _bits(result))
        return result, float(changed), float(lost)

    def rounded(
        self, before: torch.Tensor, tile: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, float, float]:
        import torch

        if dtype != torch.bfloat16 or tile.dtype != torch.float32 or tile.device.type != "cpu":
            return super().rounded(before, tile, dtype)
        result = torch.empty(tile.shape, dtype=dtype)
        changed, lost = self._kernels.rounded(before.view(-1).numpy(), _bits(tile), _bits(result))
        return result, float(changed), float(lost)


_chosen: list[Passes] = [Passes()]


def passes() -> Passes:
    """Those of this process."""
    return _chosen[-1]


def expect(entries: int) -> None:
    """Say how much is to be done; where it is much, passes are compiled ones from here on, if numba is there."""
    if entries >= COMPILED_ENTRIES and len(_chosen) == 1:
        kernels = _kernels()
        if kernels is not None:
            _chosen.append(CompiledPasses(kernels))


@functools.cache
def _kernels() -> ModuleType | None:
    """The compiled passes; None without numba, which is for few Pythons and processors."""
    try:
        return importlib.import_module("adapterhub.merging.ops.kernels")
    except ImportError:
        return None


def _is_half(rows: torch.Tensor) -> bool:
    import torch

    return rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and rows.is_contiguous()


def _bits(tensor: torch.Tensor) -> Array:
    """The entries' bits as a flat numpy array over the same memory."""
    import torch

    bits: Any = tensor.view(-1).view(torch.uint16 if tensor.dtype == torch.bfloat16 else torch.uint32)
    return bits.numpy()  # type: ignore[no-any-return]


def _square(tile: torch.Tensor) -> float:
    flat = tile.reshape(-1)
    return float(flat.dot(flat))
