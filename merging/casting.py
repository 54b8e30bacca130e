"""Models rounded to another dtype while they are read, as a recipe file's `dtype` asks; nothing is written.

Only what loses digits is done: a wider dtype holds the same numbers, and sums are taken in float32 at least. Never
imports torch.
Source: mergekit 0.1.5 `io/tasks.py`, LoadTensor: inputs are cast when they are loaded.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.patch import Patch

_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_DIGITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
"""Bits of precision."""
_LARGEST = {"F64": 1024, "F32": 128, "BF16": 128, "F16": 16}
"""Exponent of the largest number."""


def cast_model(model: Checkpoint, dtype: str | None) -> Checkpoint:
    """The model with its floating-point tensors rounded to `dtype`, a safetensors name; as it is for None."""
    if dtype is None:
        return model
    return replace(model, tensors={name: cast(handle, dtype) for name, handle in model.tensors.items()})


def cast_patch(patch: Patch, dtype: str | None) -> Patch:
    """A full model, read as a patch, likewise."""
    if dtype is None:
        return patch
    terms = (
        replace(term, fields={name: cast(handle, dtype) for name, handle in term.fields.items()})
        for term in patch.terms
    )
    return replace(patch, terms=tuple(terms))


def cast(handle: TensorHandle, dtype: str) -> TensorHandle:
    """The tensor rounded to nearest even; itself where it is no float, or `dtype` holds all that it holds.

    Too large a number becomes infinity, which the fold refuses.
    """
    if handle.dtype not in _DIGITS or (
        _DIGITS[dtype] >= _DIGITS[handle.dtype] and _LARGEST[dtype] >= _LARGEST[handle.dtype]
    ):
        return handle

    def read() -> memoryview:
        return _rounded(handle, dtype).data.cast("B").toreadonly()

    return TensorHandle(handle.name, dtype, handle.shape, read, is_computed=True)


def _rounded(handle: TensorHandle, dtype: str) -> np.ndarray[Any, Any]:
    stored = np.frombuffer(bytes(handle.read()), np.uint16 if handle.dtype == "BF16" else _NUMPY[handle.dtype])
    values = (stored.astype(np.uint32) << 16).view(np.float32) if handle.dtype == "BF16" else stored
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "BF16":
            return values.astype(_NUMPY[dtype])
        bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
