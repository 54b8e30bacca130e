"""Tiles: the ranges of rows in which a matrix is done. Plans count with them, so torch is not imported here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TILE_ELEMENTS = 1 << 18
"""Entries of one tile on a CPU: its float32 copy and what is added to it stay in a core's cache."""

RELEASE_TILES = 16
"""Tiles after which the memory of what was read of mapped files is given back: 8 MiB of each bfloat16 model."""


def tiles(matrix: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover the matrix: about TILE_ELEMENTS entries each on a CPU, all at once elsewhere."""
    rows, columns = matrix.shape
    step = max(1, TILE_ELEMENTS // max(1, columns)) if matrix.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
