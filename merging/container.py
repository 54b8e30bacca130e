"""The safetensors container: headers read strictly, layouts known beforehand, a writer that publishes whole files.

A file is 8 bytes (little-endian length N), N bytes of JSON, then the tensors back to back. Reading here is stricter
than the safetensors library: what the library accepts and two readers could understand differently (duplicate names,
unknown keys, leading spaces, odd names) is refused. Never imports torch.

Source: github.com/huggingface/safetensors, "Format" in its README.
"""

import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

from adapterhub.merging.blocks import BLOCKS, BlockFile
from adapterhub.merging.errors import BrokenContainer, InvalidPatch
from adapterhub.merging.folders import DuplicateKey, Folder, strict_json

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one number, by safetensors dtype name."""

FULL_HEADER_BYTES = 100 * 1024 * 1024
"""Longest header of a full model's file."""
PATCH_HEADER_BYTES = 8 * 1024 * 1024
"""Longest header of a patch's file; real ones stay below 1 MiB."""
MAX_TENSORS = 200_000

_NAME = re.compile(r"[ -\[\]-~]{1,512}")
"""Printable ASCII without the backslash: textual inversions name a tensor by its token, such as "<my cat>"."""
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header. start, end: byte offsets in the file, the 8 length bytes and the header included."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A safetensors header that passed every check. size_bytes: where the first tensor begins."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    size_bytes: int


def read_header(
    read: Callable[[int, int], bytes], size_bytes: int, file: str, *, limit_bytes: int = FULL_HEADER_BYTES
) -> Header:
    """The header of a safetensors file of `size_bytes`, whose bytes [start, end) `read(start, end)` gives.

    Reads nothing past the header. Raises BrokenContainer with the rule broken: "st.header", "st.duplicate_key",
    "st.count", "st.name", "st.entry", "st.dtype", "st.shape", "st.offsets" or "st.metadata".
    """
    raw = _header_bytes(read, size_bytes, file, limit_bytes)
    try:
        value = strict_json(raw)
    except DuplicateKey as error:
        raise BrokenContainer(file, "st.duplicate_key", str(error)) from error
    except ValueError as error:
        raise BrokenContainer(file, "st.header", f"the header is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BrokenContainer(file, "st.header", "the header is not a JSON object")
    metadata = _metadata(value.pop("__metadata__", {}), file)
    if len(value) > MAX_TENSORS:
        raise BrokenContainer(file, "st.count", f"{len(value)} tensors; at most {MAX_TENSORS} are read")
    first = 8 + len(raw)
    infos = [_entry(name, entry, first, file) for name, entry in value.items()]
    _check_contiguous(infos, first, size_bytes, file)
    return Header({info.name: info for info in infos}, metadata, first)


def _header_bytes(read: Callable[[int, int], bytes], size_bytes: int, file: str, limit_bytes: int) -> bytes:
    if size_bytes < 8:
        raise BrokenContainer(file, "st.header", f"{size_bytes} bytes; 8 are needed for the length alone")
    length = int.from_bytes(read(0, 8), "little")
    if not 2 <= length <= size_bytes - 8:
        raise BrokenContainer(file, "st.header", f"header of {length} bytes in a file of {size_bytes}")
    if length > limit_bytes:
        raise BrokenContainer(file, "st.header", f"header of {length} bytes; at most {limit_bytes} are read")
    raw = read(8, 8 + length)
    if len(raw) != length or raw[:1] != b"{":
        raise BrokenContainer(file, "st.header", "the header does not begin with '{'")
    # Counted before parsing, because a parsed value takes some twenty times the memory of its text.
    if raw.count(b'"data_offsets"') > MAX_TENSORS or sum(map(raw.count, (b"[", b"{", b","))) > 20 * MAX_TENSORS:
        raise BrokenContainer(file, "st.count", f"more than {MAX_TENSORS} tensors, or as many values")
    return raw


def _metadata(value: Any, file: str) -> Mapping[str, str]:
    if value is None:  # what mlx writes, and the safetensors library reads
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BrokenContainer(file, "st.metadata", "__metadata__ is not an object of strings")
    return value


def _entry(name: str, entry: Any, first: int, file: str) -> TensorInfo:
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise BrokenContainer(file, "st.name", f"tensor name {name[:100]!a}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BrokenContainer(file, "st.entry", f"{name}: entry must have dtype, shape and data_offsets, no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BrokenContainer(file, "st.dtype", f"{name}: dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > 32:
        raise BrokenContainer(file, "st.shape", f"{name}: shape {str(shape)[:100]}")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits > _MAX_NUMBER or bits % 8:
        raise BrokenContainer(file, "st.shape", f"{name}: shape {shape} of {dtype} is not a whole number of bytes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != bits // 8:
        raise BrokenContainer(file, "st.offsets", f"{name}: offsets {str(offsets)[:100]} for {bits // 8} bytes")
    return TensorInfo(name, dtype, tuple(shape), first + offsets[0], first + offsets[1])


def _are_sizes(value: Any) -> bool:
    # type() and not isinstance: True is an int, and JSON's true is no size.
    return isinstance(value, list) and all(type(one) is int and 0 <= one <= _MAX_NUMBER for one in value)


def _check_contiguous(infos: Iterable[TensorInfo], first: int, size_bytes: int, file: str) -> None:
    position = first
    for info in sorted(infos, key=lambda info: (info.start, info.end)):
        if info.start != position:
            kind = "overlaps the tensor before it" if info.start < position else "leaves a hole before it"
            raise BrokenContainer(file, "st.offsets", f"{info.name} at byte {info.start} {kind} (byte {position})")
        position = info.end
    if position != size_bytes:
        raise BrokenContainer(file, "st.offsets", f"tensors end at byte {position}, the file at {size_bytes}")


def read_folder_header(folder: Folder, name: str, *, limit_bytes: int = FULL_HEADER_BYTES) -> Header:
    """`read_header` of one file of a folder."""
    return read_header(
        lambda start, end: folder.read(name, start, end), folder.size(name), name, limit_bytes=limit_bytes
    )


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a file to be written goes.

    offsets: (start, end) in the file, in its order, zeros between them; size_bytes: of the file.
    """

    header: bytes
    offsets: Mapping[str, tuple[int, int]]
    size_bytes: int


def layout(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> Layout:
    """The layout of a file with these tensors (name -> dtype, shape): wide numbers first, then by name, as the library.

    Equal arguments in any order give equal bytes. metadata: defaults to {"format": "pt"}.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-DTYPE_BITS[item[1][0]], item[0]))
    meta = {"format": "pt"} if metadata is None else metadata
    entries: dict[str, Any] = {"__metadata__": dict(sorted(meta.items()))} if meta else {}
    position = 0
    for name, (dtype, shape) in ordered:
        end = position + prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    offsets = {name: entries[name]["data_offsets"] for name, _ in ordered}
    return Layout(
        header=len(text).to_bytes(8, "little") + text,
        offsets={name: (first + start, first + end) for name, (start, end) in offsets.items()},
        size_bytes=first + position,
    )


class LayoutWriter:
    """Writes one file whose layout is known: tensors in any order and from any thread, each once.

    The file appears under its path whole and durable at `finish`, or never. As a context manager it aborts unless
    finished. blocks: as of `BlockFile`.
    """

    def __init__(self, path: Path, layout: Layout, blocks: int = BLOCKS) -> None:
        self.path = path
        self.layout = layout
        self._claimed: set[str] = set()
        self._written: set[str] = set()
        self._lock = threading.Lock()
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        planned = [(0, len(layout.header)), *layout.offsets.values()]
        self._file: BlockFile | None = BlockFile(self._partial, layout.size_bytes, planned, blocks)
        self._file.put(memoryview(layout.header), 0)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Put the bytes of one tensor at its place. Raises as `write_parts`, and may be called again then."""
        start, end = self.layout.offsets.get(name, (0, -1))
        if memoryview(data).nbytes != end - start:
            raise self._unplanned(name, memoryview(data).nbytes)
        self.write_parts(name, [data])

    def _unplanned(self, name: str, count: int) -> InvalidPatch:
        start, end = self.layout.offsets.get(name, (0, 0))
        return InvalidPatch(f"{name}: {count} bytes to {self.path.name}, planned once with {end - start}")

    def write_parts(self, name: str, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Put the bytes of one tensor at its place, parts that follow each other.

        Raises InvalidPatch for a name that was not planned, a second time, or another number of bytes, and the OSError
        that writing met, of this tensor or one before.
        """
        start, end = self.layout.offsets.get(name, (0, -1))
        with self._lock:
            if self._file is None or name in self._claimed or end < start:
                raise self._unplanned(name, 0)
            self._claimed.add(name)
        place = start
        for part in parts:
            view = memoryview(part).cast("B")
            if place + len(view) <= end:
                self._file.put(view, place)
            place += len(view)
        if place != end:
            raise self._unplanned(name, place - start)
        with self._lock:
            self._written.add(name)

    def finish(self) -> tuple[int, str]:
        """Make the file durable and visible; gives its size in bytes and its digest.

        Raises InvalidPatch while a planned tensor is missing, and the OSError that writing met.
        """
        missing = next((name for name in self.layout.offsets if name not in self._written), None)
        if self._file is None or missing is not None:
            what = "the writer is closed" if missing is None else missing
            raise InvalidPatch(f"{self.path.name}: not every planned tensor was written: {what}")
        digest = self._file.finish()
        self._file = None
        self._partial.replace(self.path)
        _sync_folder(self.path.parent)
        return self.layout.size_bytes, digest

    def abort(self) -> None:
        """Throw the bytes away. May be called repeatedly, and after `finish`, where it does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


class SafetensorsWriter(LayoutWriter):
    """Writes one safetensors file, as `LayoutWriter` does. tensors: dtype and shape by name."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[str, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
        blocks: int = BLOCKS,
    ) -> None:
        super().__init__(path, layout(tensors, metadata), blocks)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
