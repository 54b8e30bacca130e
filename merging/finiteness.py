"""Finds NaN and infinity in stored tensors of any float dtype, by their bits and a piece at a time.

A piece of `PIECE_BYTES` is looked at whatever the tensor's size; files are mapped, so memory stays bounded. Never
imports torch. Source: IEEE 754-2019 sec. 3.4 (an exponent of ones is NaN or infinity); arXiv:2209.05433 (FP8, where
E4M3 has NaN alone, all bits but the sign set).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from adapterhub.merging.checkpoint import Folder, TensorHandle, open_tensors

PIECE_BYTES = 1 << 20

EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
"""By dtype: the unsigned integer of its width, and the bits that are all set where a number is not finite."""


class NonFinite(NamedTuple):
    """Where a tensor's first NaN or infinity is, row-major, and how many there are."""

    first: int
    total: int


def non_finite(handle: TensorHandle) -> NonFinite | None:
    """The tensor's NaN and infinity; None where all are finite or no floats."""
    if handle.dtype not in EXPONENTS:
        return None
    name, ones = EXPONENTS[handle.dtype]
    bits = np.frombuffer(handle.read(), name)
    step, mask = PIECE_BYTES // bits.itemsize, bits.dtype.type(ones)
    first, count = -1, 0
    for start in range(0, bits.size, step):
        is_bad = (bits[start : start + step] & mask) == mask
        if is_bad.any():
            first = start + int(is_bad.argmax()) if first < 0 else first
            count += int(np.count_nonzero(is_bad))
    return NonFinite(first, count) if count else None


def problems(folder: Folder, files: Iterable[str]) -> Iterator[str]:
    """A sentence for each tensor that is not finite throughout, of those files that are safetensors.

    Raises BrokenContainer for a file that is no sound one.
    """
    for file in files:
        if not file.endswith(".safetensors"):
            continue
        for name, handle in open_tensors(folder, file)[0].items():
            found = non_finite(handle)
            if found is not None:
                places = np.unravel_index(found.first, handle.shape) if handle.shape else ()
                position = tuple(int(one) for one in places)
                yield (
                    f"{file}: tensor {name} holds NaN or infinity, first at {position}, {found.total} of "
                    f"{handle.numel} numbers; its training went wrong: use an earlier checkpoint"
                )
