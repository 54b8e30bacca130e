"""Which entries of deltas are the largest, exactly, from a few rows at a time: memory does not grow with the tensor.

The threshold is found by its bits: magnitudes order as their bits do, so counting the upper 16 of them, then the next
16 of those that share the upper ones, ends at the very value. A pass over the rows for each 16 bits of a number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adapterhub.merging.ops.sparsify import kept_count, middle_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from adapterhub.merging.registry import Piece, Pieces

    Array = np.ndarray[Any, np.dtype[Any]]

_DIGIT = 1 << 16


class Threshold(NamedTuple):
    """Where the largest entries end: those above `value` are among them, and of those equal to it the first `equal`.

    is_all: whether these are all that are equal.
    """

    value: float
    equal: int
    is_all: bool


def bits(delta: torch.Tensor) -> Array:
    """The magnitudes' bits (n,) as unsigned integers, which order as the magnitudes do; NaN counts as the largest."""
    flat = delta.reshape(-1).numpy()
    kind = np.dtype(f"u{flat.itemsize}")
    found: Array = flat.view(kind) & kind.type((1 << (8 * flat.itemsize - 1)) - 1)
    return found


def thresholds(pieces: Iterable[Piece], wanted: Sequence[tuple[int, int]]) -> list[Threshold]:
    """Where the largest entries end, for each (number of a delta, how many: 1 to its entries); read several times.

    Source: most significant digit radix selection, Knuth vol. 3 sec. 5.2.2 and 5.2.5.
    """
    searches = [_Search(delta, count) for delta, count in wanted]
    width = next((piece.deltas[0].element_size() for piece in pieces), 4)
    for shift in range(8 * width - 16, -1, -16):
        counted = {search.key: np.zeros(_DIGIT, np.int64) for search in searches}
        for piece in pieces:
            for delta in {index for index, _ in counted}:
                found = bits(piece.deltas[delta])
                for index, prefix in counted:
                    if index == delta:
                        counted[index, prefix] += _digits(found, shift, prefix, is_first=shift == 8 * width - 16)
        for search in searches:
            search.narrow(counted[search.key])
    kind, number = np.dtype(f"u{width}"), np.dtype(f"f{width}")
    return [
        Threshold(float(np.array(one.prefix, kind).view(number)), one.left, one.left == one.equal) for one in searches
    ]


def trimmed(piece: Piece, number: int, limit: Threshold, left: int) -> tuple[torch.Tensor, int]:
    """One delta of a piece as (n,), all but its largest set to zero, and how many equal to the limit may follow.

    left: how many may stay here, if not all do. The delta is not modified.
    """
    import torch

    flat = piece.deltas[number].reshape(-1)
    kind = flat.numpy().dtype.type
    value = float(np.nextafter(kind(limit.value), kind(0))) if limit.is_all else limit.value
    kept = torch.nn.functional.hardshrink(flat, value)  # x where |x| > value, NaN too, else 0
    if limit.is_all or not left:
        return kept, left
    places = np.flatnonzero(np.abs(flat.numpy()) == kind(limit.value))[:left]
    kept.numpy()[places] = flat.numpy()[places]
    return kept, left - len(places)


def above(delta: torch.Tensor, limit: Threshold) -> torch.Tensor:
    """The delta as (n,), zero where it is below the limit; all that are equal to it stay. On any device."""
    import torch

    flat = delta.reshape(-1)
    kind = np.dtype(f"f{flat.element_size()}").type
    return (
        flat
        if limit.value <= 0
        else torch.nn.functional.hardshrink(flat, float(np.nextafter(kind(limit.value), kind(0))))
    )


class Largest:
    """The pieces of a tensor with all but the largest entries of each delta set to zero; of equal ones the first stay.

    A piece at a time and in order, the first one beginning anew. counts: one a delta; the numel of the tensor keeps it.
    """

    def __init__(self, pieces: Iterable[Piece], counts: Sequence[int], numel: int) -> None:
        wanted = [(number, count) for number, count in enumerate(counts) if 0 < count < numel]
        self._limits = dict(zip([n for n, _ in wanted], thresholds(pieces, wanted), strict=True)) if wanted else {}
        self._counts = counts
        self._left: dict[int, int] = {}

    def __call__(self, piece: Piece) -> list[torch.Tensor]:
        if piece.start == 0:
            self._left = {number: limit.equal for number, limit in self._limits.items()}
        return [self._kept(piece, number) for number in range(len(piece.deltas))]

    def _kept(self, piece: Piece, number: int) -> torch.Tensor:
        if self._counts[number] == 0:
            return piece.deltas[number].reshape(-1) * 0
        if number not in self._limits:
            return piece.deltas[number].reshape(-1)
        kept, self._left[number] = trimmed(piece, number, self._limits[number], self._left[number])
        return kept


def largest(pieces: Pieces, inputs: int, density: float) -> Callable[[Piece], list[torch.Tensor]]:
    """What `sparsify.keep_largest` makes of each delta, for pieces in order."""
    if pieces.limits:
        return lambda piece: [above(one, limits[0]) for one, limits in zip(piece.deltas, pieces.limits, strict=True)]
    numel = math.prod(pieces.shape)
    return Largest(pieces, [kept_count(numel, density)] * inputs, numel)


def middle(pieces: Pieces, inputs: int, density: float, gamma: float) -> Callable[[Piece], list[torch.Tensor]]:
    """What `sparsify.keep_middle` makes of each delta, for pieces in order."""
    if pieces.limits:
        return lambda piece: [
            above(one, limits[0]) - above(one, limits[1])
            for one, limits in zip(piece.deltas, pieces.limits, strict=True)
        ]
    numel = math.prod(pieces.shape)
    kept, larger = middle_counts(numel, density, gamma)
    large, outliers = (Largest(pieces, [count] * inputs, numel) for count in (larger + kept, larger))

    def keep(piece: Piece) -> list[torch.Tensor]:
        return [one - out for one, out in zip(large(piece), outliers(piece), strict=True)]

    return keep


class _Search:
    """The digits of one threshold found so far. left: how many of those that share them are among the largest."""

    def __init__(self, delta: int, count: int) -> None:
        self.delta, self.left = delta, count
        self.prefix, self.equal = 0, 0

    @property
    def key(self) -> tuple[int, int]:
        return self.delta, self.prefix

    def narrow(self, counted: Array) -> None:
        above = np.cumsum(counted[::-1])
        place = int(np.searchsorted(above, self.left))
        self.left -= int(above[place - 1]) if place else 0
        self.prefix = self.prefix * _DIGIT + (_DIGIT - 1 - place)
        self.equal = int(counted[_DIGIT - 1 - place])


def _digits(found: Array, shift: int, prefix: int, *, is_first: bool) -> Array:
    """How often each value of 16 bits occurs above `shift` in those whose bits over them are the prefix."""
    kind = found.dtype.type
    if not is_first:
        found = found[(found >> kind(shift + 16)) == kind(prefix)]
    counted: Array = np.bincount((found >> kind(shift)) & kind(_DIGIT - 1), minlength=_DIGIT)
    return counted
