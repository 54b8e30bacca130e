"""Between bytes and tensors: safetensors' dtype names, views without copies, and the one check on values."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name. Raises KeyError for a name that torch has no type for."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype ("BF16" for torch.bfloat16). Raises KeyError for one it cannot hold."""
    return {torch_name: name for name, torch_name in _TORCH_NAMES.items()}[str(dtype).removeprefix("torch.")]


def is_floating(name: str) -> bool:
    """Whether the safetensors dtype is one that a delta can be added to: 16 bits of float or more."""
    return name in {"F16", "BF16", "F32", "F64"}


def accumulator(name: str) -> torch.dtype:
    """The dtype that arithmetic on tensors of this dtype runs in: float64 for F64, float32 for all others."""
    import torch

    return torch.float64 if name == "F64" else torch.float32


def from_bytes(view: memoryview | bytes, dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """A CPU tensor over little-endian contiguous bytes: they are shared, not copied, unless they lie unaligned.

    The tensor keeps the buffer alive. It must not be written to: the bytes may be a read-only mapping of a file.
    """
    import torch

    kind = torch_dtype(dtype)
    if len(view) == 0:
        return torch.empty(tuple(shape), dtype=kind)
    raw = np.frombuffer(view, dtype=np.uint8)
    if raw.ctypes.data % kind.itemsize:
        raw = raw.copy()
    # torch warns of read-only buffers once a process and has no way to take one; the address carries no such flag.
    buffer = (ctypes.c_char * raw.nbytes).from_address(raw.ctypes.data)
    buffer._owner = raw  # type: ignore[attr-defined]  # the tensor holds `buffer`, which holds the mapping
    return torch.frombuffer(buffer, dtype=kind).view(tuple(shape))


def to_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's values as little-endian contiguous bytes; shares memory with a contiguous CPU tensor."""
    import torch

    flat = tensor.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass without a temporary. True for an empty tensor."""
    import torch

    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)  # NaN wins in both
    return math.isfinite(low.item()) and math.isfinite(high.item())


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """A view of two dimensions, the first one kept: (o, i, k, k) -> (o, i*k*k), (n,) -> (n, 1), () -> (1, 1)."""
    if tensor.dim() == 0:
        return tensor.view(1, 1)
    return tensor.reshape(tensor.shape[0], -1) if tensor.numel() else tensor.reshape(tensor.shape[0], 0)
