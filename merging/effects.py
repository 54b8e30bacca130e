"""What terms do to one site together, tile by tile.

A tensor is seen as a matrix and done in tiles of whole rows whose size depends on its shape alone, so that bytes do not
depend on who does how much of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.tensors import as_matrix, from_bytes
from adapterhub.merging.registry import Apply, Part
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.checkpoint import TensorHandle
    from adapterhub.merging.patch import SiteTerm

TILE_ELEMENTS = 1 << 18
"""Entries of one tile on a CPU: its float32 copy and what is added to it stay in a core's cache."""


def read(handle: TensorHandle, device: str = "cpu") -> torch.Tensor:
    """The handle's values on a device. On a CPU they may share the mapped file's memory: not to be written to."""
    return from_bytes(handle.read(), handle.dtype, handle.shape).to(device)


def part(term: SiteTerm, weight: float = 1.0, device: str = "cpu") -> Part:
    """The term with its tensors on a device, its own scale multiplied into the weight."""
    fields = {name: read(handle, device) for name, handle in term.fields.items()}
    return Part(fields, weight * term.scale, term.options)


def tiles(matrix: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover the matrix: about TILE_ELEMENTS entries each on a CPU, all at once elsewhere."""
    rows, columns = matrix.shape
    step = max(1, TILE_ELEMENTS // max(1, columns)) if matrix.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


@dataclass(frozen=True)
class Effects:
    """What is done to a site: first what depends on its values, then what is added to them, each in order."""

    affine: tuple[Apply, ...] = ()
    additive: tuple[Apply, ...] = ()

    def act(self, tile: torch.Tensor, start: int, stop: int) -> None:
        """Change rows start..stop, given as a contiguous tile with the base's values, in place."""
        for apply in (*self.affine, *self.additive):
            apply(tile, start, stop)

    def change(self, W: torch.Tensor) -> torch.Tensor:
        """The delta at a base with values W (float32 or float64), in W's dtype and shape; W is not modified.

        What depends on W is taken as its change of W; what does not is never added to W, so no digit is lost to it.
        """
        import torch

        source = as_matrix(W)
        result = torch.zeros_like(W, memory_format=torch.contiguous_format)
        target = as_matrix(result)
        for start, stop in tiles(source):
            tile = target[start:stop]
            if self.affine:
                tile.copy_(source[start:stop])
                Effects(self.affine).act(tile, start, stop)
                tile -= source[start:stop]
            Effects((), self.additive).act(tile, start, stop)
        return result


def effects(weighted: Iterable[tuple[float, SiteTerm]], W: torch.Tensor) -> Effects:
    """The joint effect of (weight, term) pairs on a site with W's shape and device; all terms of a kind act at once."""
    kinds: dict[str, list[Part]] = {}
    for weight, term in weighted:
        kinds.setdefault(term.term, []).append(part(term, weight, str(W.device)))
    specs = sorted((terms()[name] for name in kinds), key=lambda spec: spec.order)
    applies = [(spec.is_additive, spec.prepare(kinds[spec.name], W.shape)) for spec in specs]
    return Effects(
        affine=tuple(apply for is_additive, apply in applies if not is_additive),
        additive=tuple(apply for is_additive, apply in applies if is_additive),
    )
