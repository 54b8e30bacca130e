"""Loops over bfloat16 that numba compiles: each does in one pass over a tile what torch does in three to six.

Every one rounds as torch does, multiplication and addition fused where torch fuses them, so bytes do not depend on
whether numba is there; `passes.py` is what to call. Importing this compiles them, about a second, or reads what an
earlier process compiled. bfloat16 is the upper half of a float32, so it travels as uint16.
"""

# numba reads the bodies: numpy's promotions would widen to 64 bits, hence uint32 around every step

from typing import Any

import numpy as np
from numba import float32, float64, njit, types, uint16, uint32, void

Array = np.ndarray[Any, np.dtype[Any]]

_HALF = np.uint32(16)
_OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit([void(uint16[::1], uint32[::1], uint32[::1])], **_OPTIONS)
def widen(source: Array, first: Array, second: Array) -> None:
    """Puts bfloat16 into two float32 arrays, whose bits are given."""
    for i in range(source.size):
        bits = np.uint32(np.uint32(source[i]) << _HALF)
        first[i] = bits
        second[i] = bits


@njit([void(uint16[::1], uint32[::1])], **_OPTIONS)
def widen_once(source: Array, result: Array) -> None:
    """Puts bfloat16 into a float32 array, whose bits are given."""
    for i in range(source.size):
        result[i] = np.uint32(np.uint32(source[i]) << _HALF)


@njit([void(uint16[::1], uint16[::1], float32[::1])], **_OPTIONS)
def difference(tuned: Array, base: Array, result: Array) -> None:
    """result = tuned - base, both in bfloat16."""
    for i in range(tuned.size):
        after = np.uint32(np.uint32(tuned[i]) << _HALF).view(np.float32)
        result[i] = after - np.uint32(np.uint32(base[i]) << _HALF).view(np.float32)


@njit([void(uint16[::1], uint16[::1], float32[::1], float32)], fastmath={"contract"}, **_OPTIONS)
def add_difference(tuned: Array, base: Array, tile: Array, weight: float) -> None:
    """tile += weight · (tuned - base), tuned and base in bfloat16."""
    for i in range(tuned.size):
        after = np.uint32(np.uint32(tuned[i]) << _HALF).view(np.float32)
        before = np.uint32(np.uint32(base[i]) << _HALF).view(np.float32)
        tile[i] += weight * (after - before)


@njit([types.UniTuple(float64, 3)(uint16[::1], uint16[::1])], fastmath={"reassoc", "contract", "nsz"}, **_OPTIONS)
def products(first: Array, second: Array) -> tuple[Any, Any, Any]:
    """first · first, first · second and second · second of bfloat16, in float64."""
    squares, mixed, others = np.float64(0), np.float64(0), np.float64(0)
    for i in range(first.size):
        x = np.float64(np.uint32(np.uint32(first[i]) << _HALF).view(np.float32))
        y = np.float64(np.uint32(np.uint32(second[i]) << _HALF).view(np.float32))
        squares += x * x
        mixed += x * y
        others += y * y
    return squares, mixed, others


@njit([void(float32[::1], float32[::1], float32)], fastmath={"contract"}, **_OPTIONS)
def add_scaled(source: Array, tile: Array, weight: float) -> None:
    """tile += weight · source."""
    for i in range(source.size):
        tile[i] += weight * source[i]


@njit(
    [types.UniTuple(float32, 2)(float32[::1], uint32[::1], uint16[::1])],
    fastmath={"reassoc", "contract", "nsz"},
    **_OPTIONS,
)
def rounded(before: Array, tile: Array, result: Array) -> tuple[Any, Any]:
    """Rounds the float32 whose bits are `tile` to the nearest bfloat16, ties to even, into `result`.

    Gives Σ (before - tile)² and Σ (result - tile)².
    """
    changed = np.float32(0)
    lost = np.float32(0)
    for i in range(before.size):
        bits = tile[i]
        odd = np.uint32(np.uint32(bits >> _HALF) & np.uint32(1))
        upper = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> _HALF)
        result[i] = np.uint16(upper)
        exact = np.uint32(bits).view(np.float32)
        change = before[i] - exact
        changed += change * change
        error = np.uint32(upper << _HALF).view(np.float32) - exact
        lost += error * error
    return changed, lost


CHUNK = 4096
"""Entries that go through all steps before the next: their float32 copies stay in a core's first cache."""


@njit(**_OPTIONS)
def merged(source: Array, of_source: Any, tuned: Any, weights: Array, result: Array) -> tuple[Any, Any]:
    """What `widen`, `add_scaled`, an `add_difference` for each model and `rounded` make, a chunk at a time.

    Gives its sums. of_source: float32, what of `source` is added to it; tuned: a tuple of bfloat16 arrays, whose
    differences are from `source`; weights: float32, one each.
    """
    before = np.empty(CHUNK, np.uint32)
    tile = np.empty(CHUNK, np.uint32)
    changed = np.float32(0)
    lost = np.float32(0)
    for start in range(0, source.size, CHUNK):
        stop = min(start + CHUNK, source.size)
        first, bits = before[: stop - start], tile[: stop - start]
        base = source[start:stop]
        widen(base, first, bits)
        values = bits.view(np.float32)
        if of_source:
            add_scaled(first.view(np.float32), values, of_source)
        for number in range(len(tuned)):
            add_difference(tuned[number][start:stop], base, values, weights[number])
        sums = rounded(first.view(np.float32), bits, result[start:stop])
        changed += sums[0]
        lost += sums[1]
    return changed, lost
