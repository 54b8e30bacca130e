"""The numbers that torch's CPU generator draws, without torch: some adapters are stored as the seed of a part.

The generator is the 32-bit Mersenne twister, seeded as numpy's RandomState seeds it; a float32 takes the low 24 bits of
one draw. Source: ATen `core/MT19937RNGEngine.h` and `core/TransformationHelper.h`, uniform_real.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from adapterhub.merging.encodings import Array


class TorchGenerator:
    """What `torch.Generator("cpu").manual_seed(seed)` gives, draw after draw; of a seed the low 32 bits count."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)  # numpy keeps this stream as it is for ever

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Array:
        """Float32 of this shape: the bits of `torch.empty(shape).uniform_(low, high, generator=...)`."""
        count = prod(shape)
        drawn_bytes = self._state.bytes(4 * count) if count else b""  # numpy takes a draw for no bytes too
        draws = np.frombuffer(drawn_bytes, "<u4") & np.uint32(0xFFFFFF)
        first, last = np.float32(low), np.float32(high)
        # One rounding, as the fused multiply-add has it: the product of two 24-bit numbers is exact in float64.
        values = draws * 2.0**-24 * np.float64(last - first) + np.float64(first)
        drawn: Array = values.astype("<f4").reshape(tuple(shape))
        return drawn
