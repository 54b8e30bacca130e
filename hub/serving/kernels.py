"""The loop over packed weights that numba compiles: torch takes four times as long on two cores as this on one.

Importing this compiles it, or reads what an earlier process compiled; `packed.py` does without numba too.
"""

from typing import Any

import numpy as np
from numba import float32, int64, njit, uint8, void

Array = np.ndarray[Any, np.dtype[Any]]


@njit([void(uint8[::1], float32[::1], float32[::1], int64, float32[::1])], nogil=True, cache=True)
def widen_codes(codes: Array, table: Array, scales: Array, blocksize: int, out: Array) -> None:
    """out[2i], out[2i + 1]: what the high and the low half of byte i stand for, times the scale of their block.

    codes: whole blocks, of which the last may be short; blocksize: of an even number of codes.
    """
    half = blocksize // 2
    for block in range(scales.size):
        scale = scales[block]
        first = block * half
        for i in range(first, min(first + half, codes.size)):
            out[2 * i] = table[codes[i] >> 4] * scale
            out[2 * i + 1] = table[codes[i] & 15] * scale
