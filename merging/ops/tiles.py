"""Tiles: the ranges of rows in which a matrix is done. Plans count with them, so torch is not imported here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TILE_ELEMENTS = 1 << 19
"""Entries of one tile on a CPU: few enough for a cache, and enough that threads seldom wait for the interpreter."""

RELEASE_TILES = 4
"""Tiles after which the memory of what was read of mapped files is given back: 4 MiB of each bfloat16 model."""


def tiles(matrix: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover the matrix: about TILE_ELEMENTS entries each on a CPU, all at once elsewhere."""
    rows, columns = matrix.shape
    step = max(1, TILE_ELEMENTS // max(1, columns)) if matrix.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
