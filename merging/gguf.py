"""GGUF files, read and written as far as adapters need: key-value pairs and lazy tensors of plain floats.

Little-endian: magic "GGUF", version 2 or 3, counts of tensors and pairs, the pairs, then each tensor's name, sizes
(fastest first), type and offset from the aligned start of the data. Never imports torch.
Source: ggml-org/ggml docs/gguf.md.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from adapterhub.merging.checkpoint import DTYPE_BITS, Folder, TensorHandle
from adapterhub.merging.container import Layout
from adapterhub.merging.errors import BrokenContainer

MAX_HEADER_BYTES = 16 << 20
"""Longest header that is read: an adapter names each of its tensors and brings no vocabulary."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_DTYPES = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
"""ggml's numbers of the types that adapters have."""

_MOST = 1 << 20


@dataclass(frozen=True)
class Gguf:
    """One file's pairs by key, and its tensors with sizes in numpy's order."""

    pairs: Mapping[str, Any]
    tensors: Mapping[str, TensorHandle]


@dataclass
class _Reader:
    """Values one after another out of the header's bytes."""

    file: str
    data: bytes
    position: int = field(default=0)

    def scalar(self, form: str) -> Any:
        size = struct.calcsize(form)
        if self.position + size > len(self.data):
            raise BrokenContainer(self.file, "gguf.header", f"ends at byte {len(self.data)} within its header")
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += size
        return value

    def count(self) -> int:
        value = int(self.scalar("<Q"))
        if value > _MOST:
            raise BrokenContainer(self.file, "gguf.header", f"a count of {value}; at most {_MOST} are read")
        return value

    def text(self) -> str:
        length = self.count()
        raw = self.data[self.position : self.position + length]
        self.position += length
        if len(raw) != length:
            raise BrokenContainer(self.file, "gguf.header", f"ends at byte {len(self.data)} within its header")
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, length = self.scalar("<I"), self.count()
            if inner == _ARRAY:
                raise BrokenContainer(self.file, "gguf.header", "an array of arrays")
            return [self.value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise BrokenContainer(self.file, "gguf.header", f"a value of type {kind}")
        return self.scalar(_SCALARS[kind])


def open_gguf(folder: Folder, name: str) -> Gguf:
    """The pairs and tensors of a file, only its header read. Raises BrokenContainer for what is no sound GGUF file."""
    reader = _Reader(name, folder.read(name, 0, MAX_HEADER_BYTES))
    magic, version = reader.scalar("<I"), reader.scalar("<I")
    if magic != 0x46554747 or version not in (2, 3):
        raise BrokenContainer(name, "gguf.magic", f"begins with {magic:#x}, version {version}; GGUF 2 or 3 is expected")
    tensor_count, pair_count = reader.count(), reader.count()
    pairs = {}
    for _ in range(pair_count):
        key = reader.text()
        pairs[key] = reader.value(reader.scalar("<I"))
    found = [_entry(reader) for _ in range(tensor_count)]
    alignment = pairs.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 16:
        raise BrokenContainer(name, "gguf.alignment", f"general.alignment is {alignment!r}")
    start = -(-reader.position // alignment) * alignment
    tensors = {}
    for tensor, dtype, shape, offset in found:
        first = start + offset
        last = first + prod(shape) * DTYPE_BITS[dtype] // 8
        if tensor in tensors or last > folder.size(name):
            raise BrokenContainer(name, "gguf.tensor", f"{tensor[:200]}: stands twice, or ends past the file's end")
        tensors[tensor] = TensorHandle(tensor, dtype, shape, _bytes(folder, name, first, last))
    return Gguf(pairs, tensors)


def _bytes(folder: Folder, name: str, first: int, last: int) -> Callable[[], memoryview]:
    return lambda: memoryview(folder.read(name, first, last))


def _entry(reader: _Reader) -> tuple[str, str, tuple[int, ...], int]:
    name, dimensions = reader.text(), reader.scalar("<I")
    if dimensions > 4:
        raise BrokenContainer(reader.file, "gguf.tensor", f"{name[:200]}: {dimensions} dimensions")
    shape = tuple(int(reader.scalar("<Q")) for _ in range(dimensions))[::-1]
    kind, offset = reader.scalar("<I"), int(reader.scalar("<Q"))
    if kind not in _DTYPES:
        raise BrokenContainer(reader.file, "gguf.tensor", f"{name[:200]}: ggml type {kind}; plain floats are read here")
    return name, _DTYPES[kind], shape, offset


# ---- writing ---------------------------------------------------------------------------------------------------------

_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
_ALIGNMENT = 32
_MAGIC, _VERSION, _FLOAT = 0x46554747, 3, 6


def gguf_layout(tensors: Mapping[str, tuple[str, Sequence[int]]], pairs: Mapping[str, str | float]) -> Layout:
    """The layout of a file with these pairs and tensors (name -> dtype, shape), both in the order given.

    Texts become strings and numbers float32, each tensor begins at a multiple of 32, zeros fill what is between: the
    bytes of gguf-py's GGUFWriter.
    """
    header = struct.pack("<IIQQ", _MAGIC, _VERSION, len(tensors), len(pairs))
    for key, value in pairs.items():
        header += _text(key) + _value(value)
    position, starts = 0, {}
    for name, (dtype, shape) in tensors.items():
        header += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        header += struct.pack("<IQ", _NUMBERS[dtype], position)
        starts[name] = position
        position += _aligned(prod(shape) * DTYPE_BITS[dtype] // 8)
    first = _aligned(len(header))
    sizes = {name: prod(shape) * DTYPE_BITS[dtype] // 8 for name, (dtype, shape) in tensors.items()}
    offsets = {name: (first + start, first + start + sizes[name]) for name, start in starts.items()}
    return Layout(header, offsets, first + position)


def _value(value: str | float) -> bytes:
    return struct.pack("<I", _STRING) + _text(value) if isinstance(value, str) else struct.pack("<If", _FLOAT, value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
