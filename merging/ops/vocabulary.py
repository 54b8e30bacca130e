"""Tables with a row a token, such as embeddings, in the order of another vocabulary: numpy arrays, block by block.

Rows that are only moved are moved as the bytes they are. Where a row is a mean, all are float32 (float64 where the
model's own are), so that what is merged later is rounded once. Never imports torch: plans hold such tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_ELEMENTS = 1 << 20
"""Entries that are widened at a time."""

_WIDE: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_STORED: Mapping[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), **_WIDE}


@dataclass(frozen=True)
class Table:
    """A table as it is stored. bits: (rows, columns) of unsigned integers; dtype: safetensors name."""

    bits: Array
    dtype: str

    @classmethod
    def of_bytes(cls, data: memoryview | bytes, dtype: str, rows: int) -> Table:
        """Over bytes, which are shared. Each entry keeps its width; for other widths than 8, 16, 32, 64 bits, bytes."""
        raw = np.frombuffer(data, np.uint8)
        width = _STORED[dtype].itemsize if dtype in _STORED else 1
        if raw.ctypes.data % width:
            raw = raw.copy()
        columns = raw.size // width // rows if rows else 0
        return cls(raw.view(f"<u{width}").reshape(rows, columns), dtype)

    def numbers(self, rows: Array, dtype: str) -> Array:
        """The values of some rows as float32 or float64, exactly."""
        found: Array = self.bits[rows]
        if self.dtype == "BF16":
            return (found.astype(np.uint32) << 16).view(np.float32).astype(_WIDE[dtype])
        return found.view(_STORED[self.dtype]).astype(_WIDE[dtype])


@dataclass(frozen=True)
class Fills:
    """Rows that some models lack, each the mean of rows of several tables.

    ids: which tokens, ascending, (n,). rows: for each table the row it gives to each of them, -1 for none, (tables, n).
    A token to which no table gives a row gets zeros.
    """

    ids: Array
    rows: Array

    @property
    def are_moved(self) -> bool:
        """Whether no row is a mean of several."""
        return bool(((self.rows >= 0).sum(0) <= 1).all())


def reindexed(own: int, tables: Sequence[Table], rows: Array, fills: Fills, *, total: int, dtype: str) -> Array:
    """Table number `own` in the order of the result's vocabulary: (total, columns), unsigned integers of dtype's width.

    rows: for each token the own row, -1 for one that `fills` has, (tokens,). total: further rows are the mean of those
    before them, whose sum is taken in float64. dtype: the tables' own where nothing is computed, else F32 or F64.
    """
    table = tables[own]
    is_moved = all(one.dtype == dtype for one in tables)
    columns = table.bits.shape[1]
    kind = table.bits.dtype if is_moved else np.dtype(f"<u{_WIDE[dtype].itemsize}")
    result: Array = np.empty((total, columns), kind)
    sums = np.zeros(columns)
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        target = result[start : start + len(block)]
        lacking = np.flatnonzero(block < 0)
        if is_moved and fills.are_moved:
            # "clip" writes straight into the result; what it takes for a missing row is written over.
            np.take(table.bits, block, axis=0, out=target, mode="clip")
            target[lacking] = _moved(tables, fills, start + lacking, columns, kind)
        else:
            numbers = target.view(_WIDE[dtype])
            numbers[:] = table.numbers(np.maximum(block, 0), dtype)
            numbers[lacking] = _means(tables, fills, start + lacking, columns, dtype)
        if total > len(rows):
            sums += target.view(_WIDE[dtype]).sum(0, dtype=np.float64)
    if total > len(rows):
        result[len(rows) :].view(_WIDE[dtype])[:] = sums / max(1, len(rows))
    return result


def _moved(tables: Sequence[Table], fills: Fills, ids: Array, columns: int, kind: np.dtype[Any]) -> Array:
    found = np.zeros((len(ids), columns), kind)
    for table, rows in zip(tables, fills.rows[:, np.searchsorted(fills.ids, ids)], strict=True):
        found[rows >= 0] = table.bits[rows[rows >= 0]]
    return found


def _means(tables: Sequence[Table], fills: Fills, ids: Array, columns: int, dtype: str) -> Array:
    here = fills.rows[:, np.searchsorted(fills.ids, ids)]
    found = np.zeros((len(ids), columns), _WIDE[dtype])
    for table, rows in zip(tables, here, strict=True):
        found[rows >= 0] += table.numbers(rows[rows >= 0], dtype)
    counts = np.maximum(1, (here >= 0).sum(0)).astype(found.dtype)
    means: Array = found / counts[:, None]
    return means
