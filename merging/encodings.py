"""Which entries of a tensor: packed bits and the three encodings of sparse positions, as numpy arrays.

Packed bits are row-major, least significant bit first, the last byte filled with zeros. "flat" is ascending row-major
positions, "csr16" row starts and 16-bit columns, "bitmap" packed bits.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import InvalidPatch

Array = np.ndarray[Any, np.dtype[Any]]

NUMPY: Mapping[str, str] = {
    "U8": "u1",
    "U16": "<u2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
"""numpy's name of each safetensors dtype that patches hold, BF16 aside: numpy has no such type."""


def pack_bits(selected: Array) -> Array:
    """Bool of any shape as uint8 (ceil(n / 8),), row-major, least significant bit first, the tail zero."""
    return np.packbits(np.ascontiguousarray(selected).reshape(-1), bitorder="little")


def unpack_bits(bits: Array, numel: int) -> Array:
    """Bool (numel,) from packed bits. Raises InvalidPatch for a wrong length or a tail that is not zero."""
    if bits.shape != ((numel + 7) // 8,):
        raise InvalidPatch(f"{bits.size} bytes of bits for {numel} entries; {(numel + 7) // 8} are expected")
    unpacked = np.unpackbits(bits, bitorder="little").astype(bool)
    if unpacked[numel:].any():
        raise InvalidPatch(f"bits beyond the {numel} entries are set")
    return unpacked[:numel]


def packed_problem(bits: Array, numel: int) -> str | None:
    """What is wrong with packed bits for so many entries, as a sentence; None where nothing is."""
    try:
        unpack_bits(bits, numel)
    except InvalidPatch as error:
        return str(error)
    return None


def encode_indices(
    indices: Array, shape: Sequence[int], index: str | None = None
) -> tuple[str, dict[str, tuple[str, Array]]]:
    """The encoding's name and its arrays, from flat row-major positions, ascending and unique.

    index None: "bitmap" above a density of 1/16, else "csr16" where rows have at most 65536 entries, else "flat".
    """
    numel, columns = prod(shape), prod(shape[1:])
    if index is None:
        can_csr = len(shape) > 1 and 0 < columns <= 65536
        index = "bitmap" if len(indices) * 16 > numel else "csr16" if can_csr else "flat"
    if index == "bitmap":
        selected = np.zeros(numel, bool)
        selected[indices] = True
        return index, {"bits": ("U8", pack_bits(selected))}
    if index == "csr16":
        counts = np.bincount(indices // columns, minlength=shape[0])
        crow = np.concatenate(([0], np.cumsum(counts)))
        return index, {"crow": _narrow(crow, len(indices)), "col": ("U16", (indices % columns).astype("<u2"))}
    if index == "flat":
        return index, {"idx": _narrow(indices, numel)}
    raise InvalidPatch(f"index encoding {index!r}; known are flat, csr16 and bitmap")


def _narrow(values: Array, bound: int) -> tuple[str, Array]:
    return ("I32", values.astype("<i4")) if bound < 2**31 else ("I64", values.astype("<i8"))


def decode_indices(index: str, fields: Mapping[str, Array], shape: Sequence[int]) -> Array:
    """Flat row-major positions int64 (nnz,), ascending and unique. Raises InvalidPatch for anything else."""
    if index not in DECODERS:
        raise InvalidPatch(f"index encoding {index!r}; known are {', '.join(DECODERS)}")
    names, decode = DECODERS[index]
    missing = [name for name in names if name not in fields]
    if missing:
        raise InvalidPatch(f"index encoding {index} without its field {missing[0]!r}")
    indices = decode(fields, tuple(shape)).astype(np.int64)
    is_ascending = indices.ndim == 1 and bool((np.diff(indices) > 0).all())
    if not is_ascending or (indices.size and not 0 <= indices[0] <= indices[-1] < prod(shape)):
        raise InvalidPatch(f"positions are not ascending, unique and inside {tuple(shape)}")
    return indices


def _decode_flat(fields: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    return fields["idx"]


def _decode_csr16(fields: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    crow, col, columns = fields["crow"].astype(np.int64), fields["col"].astype(np.int64), prod(shape[1:])
    is_whole = crow.shape == (shape[0] + 1,) and crow[0] == 0 and crow[-1] == len(col) and (np.diff(crow) >= 0).all()
    if not is_whole or (col >= columns).any():
        raise InvalidPatch(f"crow and col are not the rows and columns of {shape}")
    indices: Array = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(crow)) * columns + col
    return indices


def _decode_bitmap(fields: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    return np.flatnonzero(unpack_bits(fields["bits"], prod(shape)))


DECODERS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Array], tuple[int, ...]], Array]]] = {
    "flat": (("idx",), _decode_flat),
    "csr16": (("crow", "col"), _decode_csr16),
    "bitmap": (("bits",), _decode_bitmap),
}


def as_array(handle: TensorHandle) -> Array:
    """The tensor as a read-only numpy array over its bytes; BF16 as its bits in uint16. Raises InvalidPatch."""
    name = "<u2" if handle.dtype == "BF16" else NUMPY.get(handle.dtype)
    if name is None:
        raise InvalidPatch(f"{handle.name}: {handle.dtype} is no dtype of patches; use one of {', '.join(NUMPY)}")
    return np.frombuffer(handle.read(), name).reshape(handle.shape)


def as_floats(handle: TensorHandle) -> Array:
    """The tensor's values as float64; F16, BF16, F32 and F64 are exact in it. Raises InvalidPatch for other dtypes."""
    if handle.dtype not in ("F16", "BF16", "F32", "F64"):
        raise InvalidPatch(f"{handle.name}: {handle.dtype} holds no floats; F16, BF16, F32 or F64 is expected")
    array = as_array(handle)
    if handle.dtype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return array.astype(np.float64)


# ---- entries in order ------------------------------------------------------------------------------------------------


def ascending_order(keys: Array, where: str) -> Array | None:
    """What sorts unique positions; None where they ascend already. Raises InvalidPatch for one that stands twice."""
    if (np.diff(keys) > 0).all():
        return None
    order = np.argsort(keys, kind="stable")
    if (np.diff(keys[order]) == 0).any():
        raise InvalidPatch(
            f"{where}: an entry of the weight is listed twice; save the adapter again with each one once"
        )
    return order


def in_order(handle: TensorHandle, order: Array | None) -> TensorHandle:
    """The tensor with its last axis taken in this order when it is read; the same handle where there is none."""
    if order is None:
        return handle

    def read() -> memoryview:
        taken = np.ascontiguousarray(as_array(handle)[..., order])
        return memoryview(taken.reshape(-1).view(np.uint8).data).toreadonly()

    return TensorHandle(handle.name, handle.dtype, handle.shape, read)


def corner(handle: TensorHandle, shape: Sequence[int]) -> TensorHandle:
    """The first rows and columns of a stored matrix, as a handle. Raises InvalidPatch for more than there are."""
    if len(handle.shape) != len(shape) or any(want > has for want, has in zip(shape, handle.shape, strict=True)):
        raise InvalidPatch(f"{handle.name}: is {handle.shape}; at least {tuple(shape)} is needed")
    if tuple(shape) == handle.shape:
        return handle
    width = handle.nbytes // max(1, handle.numel)

    def read() -> memoryview:
        whole = np.frombuffer(handle.read(), np.uint8).reshape(*handle.shape, width)
        taken = np.ascontiguousarray(whole[tuple(slice(size) for size in shape)])
        return memoryview(taken.reshape(-1).data).toreadonly()

    return TensorHandle(handle.name, handle.dtype, tuple(shape), read)
