"""Bases stored in 4 or 8 bits, read as the numbers they stand for: each weight dequantised by its format's formula.

Read: bitsandbytes nf4 and fp4 (with and without double quantisation) and int8, and FP8 with scales by block, by row or
by tensor (DeepSeek's, compressed-tensors' and ModelOpt's names). A dequantised tensor has the dtype that the model
computes in, rounded to nearest even, as the formats' own libraries give it. Other formats are refused by name.

Runs on numpy, without a GPU and without those libraries. Never imports torch.
Source: arXiv:2305.14314 sec. 3 (NF4, double quantisation); bitsandbytes `functional.py`, QuantState; arXiv:2208.07339
sec. 3 (int8, absmax of rows / 127); arXiv:2412.19437 sec. 3.3 (FP8 with blocks of 128 x 128).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.encodings import NUMPY, Array
from adapterhub.merging.errors import InvalidPatch, NotFoldable

_FLOAT_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_NUMBERS = {**NUMPY, "I8": "i1"}


SIMULATED = ("nf4", "int8", "fp8")
"""Formats of which a fold can say what they would take from a weight: those of `ops.quantise`."""


def quantisation_of(config: Mapping[str, Any]) -> str:
    """How a model's weights are stored, by its config.json: "none", "nf4", "fp4", "int8", "fp8" or its method."""
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return "none"
    method = str(said.get("quant_method", "unknown")).lower()
    if method == "bitsandbytes":
        if said.get("load_in_4bit") or said.get("_load_in_4bit"):
            return str(said.get("bnb_4bit_quant_type", "fp4")).lower()
        return "int8"
    is_fp8 = method in ("fp8", "fbgemm_fp8") or str(said.get("quant_algo", "")).upper() == "FP8"
    if is_fp8 or (method == "compressed-tensors" and said.get("format") in ("float-quantized", "naive-quantized")):
        return "fp8"
    return method


@dataclass(frozen=True)
class Coded:
    """A weight as indices into a table of 16 numbers, each times the scale of its block of `blocksize` in row-major
    order. packed: two indices a byte, the high half first. dtype: that of the numbers it stands for.

    companions: the other stored tensors that are read for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    packed: TensorHandle
    blocksize: int
    read_table: Callable[[], Array]
    read_scales: Callable[[], Array]
    companions: frozenset[str]

    def values(self) -> Array:
        """In float32, of its shape."""
        numel = prod(self.shape)
        raw = np.frombuffer(self.packed.read(), np.uint8)
        indices = np.stack([raw >> 4, raw & 15], 1).reshape(-1)[:numel]
        scales = self.read_scales().repeat(self.blocksize)[:numel]
        values: Array = self.read_table()[indices] * scales
        return values.reshape(self.shape)


@dataclass(frozen=True)
class Scaled:
    """A matrix of 8-bit numbers, each times the scale of its block of rows and columns.

    stored: I8, F8_E4M3 or F8_E5M2. read_grid: the scales, float32 (block rows, block columns). dtype, companions: as in
    Coded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: TensorHandle
    block: tuple[int, int]
    read_grid: Callable[[], Array]
    companions: frozenset[str]

    def values(self) -> Array:
        """In float32, of its shape."""
        rows, columns = self.shape
        spread = self.read_grid().repeat(self.block[0], 0)[:rows].repeat(self.block[1], 1)[:, :columns]
        values: Array = widen(self.stored).astype(np.float32) * spread
        return values


Packed = Coded | Scaled


def packed(stored: Checkpoint) -> dict[str, Packed]:
    """The quantised weights of a checkpoint by their names, none where it is not quantised.

    Raises NotFoldable for a format that is not read, InvalidPatch for tensors that do not go together.
    """
    kind = quantisation_of(stored.config)
    if kind == "none":
        return {}
    if kind not in _READERS:
        raise NotFoldable(
            f"{stored.name}: its weights are quantised as {kind!r}; {', '.join(_READERS)} are read: use the base it "
            "was made from"
        )
    dtype = _compute_dtype(stored.config)
    found = ((name, _READERS[kind](name, stored.tensors, dtype)) for name in stored.tensors)
    return {name: weight for name, weight in found if weight is not None}


def dequantised(stored: Checkpoint) -> Checkpoint:
    """The checkpoint with every quantised weight as a handle on its dequantised values; others, and its name, stay.

    A checkpoint that is not quantised comes back as it is. The config loses `quantization_config`. Values are computed
    at each read. Raises as `packed`.
    """
    if quantisation_of(stored.config) == "none":
        return stored
    weights = packed(stored)
    used = frozenset().union(*(weight.companions for weight in weights.values()))
    tensors = {name: handle for name, handle in stored.tensors.items() if name not in used}
    tensors |= {name: _handle(weight) for name, weight in weights.items()}
    config = {key: value for key, value in stored.config.items() if key != "quantization_config"}
    return replace(stored, tensors=dict(sorted(tensors.items())), config=config)


def _compute_dtype(config: Mapping[str, Any]) -> str:
    said = config.get("quantization_config") or {}
    for value in (config.get("dtype"), config.get("torch_dtype"), said.get("bnb_4bit_compute_dtype")):
        if str(value) in _FLOAT_NAMES:
            return _FLOAT_NAMES[str(value)]
    return "BF16"


def _handle(weight: Packed) -> TensorHandle:
    def read() -> memoryview:
        values = narrow(weight.values(), weight.dtype)
        return memoryview(values.reshape(-1).view(np.uint8).data).toreadonly() if values.size else memoryview(b"")

    return TensorHandle(weight.name, weight.dtype, weight.shape, read)


def narrow(values: Array, dtype: str) -> Array:
    """float32 values as an array of BF16 (bits in uint16), F16 or F32, rounded to nearest even."""
    single = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return single
    if dtype == "F16":
        return single.astype("<f2")
    bits = single.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(single), np.uint32(0x7FC0), rounded).astype("<u2")


def widen(handle: TensorHandle) -> Array:
    """A stored tensor as a numpy array: floats of any width as float32, integers as they are. Raises InvalidPatch."""
    raw = np.frombuffer(handle.read(), np.uint8)
    if handle.dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(handle.shape)
    if handle.dtype in ("F8_E4M3", "F8_E5M2"):
        return (_E4M3 if handle.dtype == "F8_E4M3" else _E5M2)[raw].reshape(handle.shape)
    if handle.dtype not in _NUMBERS:
        raise InvalidPatch(f"{handle.name}: dtype {handle.dtype} holds no weights or scales")
    values = raw.view(_NUMBERS[handle.dtype]).reshape(handle.shape)
    return values.astype(np.float32) if handle.dtype.startswith("F") else values


def _eight_bit_floats(exponent_bits: int, bias: int, *, has_infinity: bool) -> Array:
    """All 256 values of an 8-bit float as float32. Source: arXiv:2209.05433 table 1."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    exponent, mantissa = (codes >> mantissa_bits) & (2**exponent_bits - 1), codes & (2**mantissa_bits - 1)
    normal = np.ldexp(1 + mantissa / 2**mantissa_bits, exponent - bias)
    values = np.where(exponent == 0, np.ldexp(mantissa / 2**mantissa_bits, 1 - bias), normal)
    if has_infinity:
        values = np.where(exponent == 2**exponent_bits - 1, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where((codes & 0x7F) == 0x7F, np.nan, values)
    return np.where(codes & 0x80, -values, values).astype(np.float32)


_E4M3 = _eight_bit_floats(4, 7, has_infinity=False)
_E5M2 = _eight_bit_floats(5, 15, has_infinity=True)


# ---- bitsandbytes ----------------------------------------------------------------------------------------------------


def _read_4bit(name: str, tensors: Mapping[str, TensorHandle], dtype: str) -> Coded | None:
    """code[index] · absmax of its block; two indices a byte, the high half first.

    With double quantisation the absmax are themselves 8-bit codes: map[code] · absmax of 256 of them + offset.
    """
    prefix = name + ".quant_state.bitsandbytes__"
    states = [one for one in tensors if one.startswith(prefix)]
    if not states:
        return None
    state = _state(tensors[states[0]])
    parts = {one for one in tensors if one.startswith(name + ".")}
    needed = {"absmax", "quant_map"} | ({"nested_absmax", "nested_quant_map"} if state.nested else set())
    missing = sorted(one for one in needed if f"{name}.{one}" not in tensors)
    if missing:
        raise InvalidPatch(f"{name}: its {missing[0]} is missing beside the packed weights")
    packed = tensors[name]
    numel = prod(state.shape)
    blocks = -(-numel // state.blocksize)
    if packed.nbytes != (numel + 1) // 2 or tensors[f"{name}.absmax"].numel != blocks:
        raise InvalidPatch(f"{name}: {packed.nbytes} bytes and {tensors[f'{name}.absmax'].numel} scales for {numel}")

    return Coded(
        name=name,
        shape=state.shape,
        dtype=_FLOAT_NAMES.get(state.dtype, dtype),
        packed=packed,
        blocksize=state.blocksize,
        read_table=lambda: widen(tensors[f"{name}.quant_map"]),
        read_scales=lambda: _absmax(name, tensors, state),
        companions=frozenset(parts),
    )


@dataclass(frozen=True)
class _State:
    """What bitsandbytes packs as JSON beside each weight. nested, offset: of double quantisation, else None and 0."""

    shape: tuple[int, ...]
    dtype: str
    blocksize: int
    nested: int | None
    offset: float


def _state(handle: TensorHandle) -> _State:
    """The JSON in a tensor of bytes, checked. Raises InvalidPatch."""
    try:
        said = json.loads(bytes(handle.read()))
    except (ValueError, RecursionError) as error:
        raise InvalidPatch(f"{handle.name}: not JSON: {error}") from error
    said = said if isinstance(said, dict) else {}
    shape, block, nested = said.get("shape"), said.get("blocksize"), said.get("nested_blocksize")
    offset = said.get("nested_offset", 0.0)
    is_shape = isinstance(shape, list) and all(type(one) is int and 0 <= one < 2**40 for one in shape)
    are_blocks = all(type(one) is int and 0 < one <= 65536 for one in (block, 1 if nested is None else nested))
    if not is_shape or not are_blocks or type(offset) not in (int, float):
        raise InvalidPatch(
            f"{handle.name}: says shape {shape!r}, blocks of {block!r} and {nested!r}, offset {offset!r}"
        )
    return _State(tuple(shape), str(said.get("dtype")), block, nested, float(offset))  # type: ignore[arg-type]


def _absmax(name: str, tensors: Mapping[str, TensorHandle], state: _State) -> Array:
    stored = tensors[f"{name}.absmax"]
    if not state.nested:
        return widen(stored).reshape(-1)
    codes = np.frombuffer(stored.read(), np.uint8)
    values = widen(tensors[f"{name}.nested_quant_map"])[codes]
    scales = widen(tensors[f"{name}.nested_absmax"]).reshape(-1).repeat(state.nested)[: len(codes)]
    if len(scales) != len(codes):
        raise InvalidPatch(f"{name}: {len(codes)} nested scales, and blocks for {len(scales)}")
    absmax: Array = (values * scales + np.float32(state.offset)).astype(np.float32)
    return absmax


def _read_int8(name: str, tensors: Mapping[str, TensorHandle], dtype: str) -> Scaled | None:
    """W[row, column] · SCB[row] / 127."""
    scale_name = name.removesuffix("weight") + "SCB"
    if not name.endswith(".weight") or scale_name not in tensors or tensors[name].dtype != "I8":
        return None
    weight, scales = tensors[name], tensors[scale_name]
    if len(weight.shape) != 2 or scales.shape != weight.shape[:1]:
        raise InvalidPatch(f"{name}: int8 weights of {weight.shape} with scales of {scales.shape}")

    def grid() -> Array:
        scaled: Array = (widen(scales) * np.float32(1 / 127))[:, None]
        return scaled

    companions = frozenset({scale_name, name.removesuffix("weight") + "weight_format"})
    return Scaled(name, weight.shape, dtype, weight, (1, weight.shape[1]), grid, companions)


# ---- FP8 -------------------------------------------------------------------------------------------------------------


def _read_fp8(name: str, tensors: Mapping[str, TensorHandle], dtype: str) -> Scaled | None:
    """W · scale, the scale of the entry's block, row or tensor; `weight_scale_inv` is, despite its name, no inverse."""
    if tensors[name].dtype not in ("F8_E4M3", "F8_E5M2"):
        return None
    weight = tensors[name]
    scale_name = next((one for one in (f"{name}_scale_inv", f"{name}_scale") if one in tensors), None)
    if scale_name is None:
        raise InvalidPatch(f"{name}: 8-bit floats without {name}_scale or {name}_scale_inv")
    scales = tensors[scale_name]
    block = _block(weight.shape, scales.shape)
    if block is None:
        raise InvalidPatch(f"{name}: 8-bit floats of {weight.shape} with scales of {scales.shape}")
    *sizes, columns = block
    companions = frozenset({f"{name}_scale", f"{name}_scale_inv", name.removesuffix("weight") + "input_scale"})
    return Scaled(
        name=name,
        shape=weight.shape,
        dtype=dtype,
        stored=weight,
        block=(sizes[0], sizes[1]),
        read_grid=lambda: widen(scales).reshape(-1, columns),
        companions=companions,
    )


def _block(weight: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(rows, columns) of a block and the columns of the grid of scales: one scale a tensor, a row, or 128 x 128."""
    if len(weight) != 2:
        return None
    rows, columns = weight
    if prod(scales) == 1:
        return rows, columns, 1
    if scales in ((rows,), (rows, 1)):
        return 1, columns, 1
    if scales == (-(-rows // 128), -(-columns // 128)):
        return 128, 128, scales[1]
    return None


_READERS: Mapping[str, Callable[[str, Mapping[str, TensorHandle], str], Packed | None]] = {
    "nf4": _read_4bit,
    "fp4": _read_4bit,
    "int8": _read_int8,
    "fp8": _read_fp8,
}
