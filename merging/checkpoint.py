"""Lazy tensors of models: handles on mapped files, and checkpoints of one file, of shards, or of anything else.

Never imports torch. `Folder`, `SafetensorsWriter` and their like are re-exported: this file is the door to tensors.
"""

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Self

from adapterhub.merging.container import (
    DTYPE_BITS,
    FULL_HEADER_BYTES,
    Header,
    Layout,
    SafetensorsWriter,
    TensorInfo,
    layout,
    read_folder_header,
    read_header,
)
from adapterhub.merging.errors import BrokenContainer, InvalidPatch, ShapeMismatch, UnknownSite
from adapterhub.merging.folders import Folder, LocalFolder, MappedFile, MappedFolder, is_inside, join, read_json

__all__ = [
    "DTYPE_BITS",
    "Checkpoint",
    "Folder",
    "Header",
    "Layout",
    "LocalFolder",
    "MappedFile",
    "MappedFolder",
    "SafetensorsWriter",
    "TensorHandle",
    "TensorInfo",
    "check_fits",
    "find_weights",
    "layout",
    "open_tensors",
    "read_header",
]


@dataclass(frozen=True)
class TensorHandle:
    """A tensor that is read when asked for. dtype: safetensors name. Equal when name, dtype and shape are.

    is_computed: whether reading takes memory of its own, because the bytes do not lie in a file as they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    _read: Callable[[], memoryview] = field(repr=False, compare=False)
    is_computed: bool = field(default=False, repr=False, compare=False)
    _advise: Callable[[int], None] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_bytes(cls, name: str, dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> Self:
        """A handle on bytes in memory, little-endian and contiguous. Raises InvalidPatch when their number is wrong."""
        view = memoryview(data).cast("B").toreadonly()
        handle = cls(name, dtype, tuple(shape), lambda: view)
        if len(view) != handle.nbytes:
            raise InvalidPatch(f"{name}: {len(view)} bytes for {handle.nbytes} of {dtype} {tuple(shape)}")
        return handle

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPE_BITS[self.dtype] // 8

    @property
    def is_mapped(self) -> bool:
        """Whether the bytes lie in a mapped file, so that reading some of them takes memory for these alone."""
        return self._advise is not None

    def read(self) -> memoryview:
        """All bytes, little-endian, contiguous: a read-only view of the mapped file that may start at any address.

        Whoever needs alignment or a buffer to write to copies it (one memcpy).
        """
        return self._read()

    def release(self) -> None:
        """Give back the memory that read bytes take here, where they lie in a mapped file; views stay good."""
        if self._advise is not None:
            self._advise(mmap.MADV_DONTNEED)


class _MappedWeights:
    """One weight file, mapped at the first read of one of its tensors and unmapped with the last view."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name

    @cached_property
    def _map(self) -> mmap.mmap:
        with self._folder.path(self._name).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _view(self) -> memoryview:
        return memoryview(self._map)

    def handle(self, info: TensorInfo) -> TensorHandle:
        def advise(advice: int) -> None:
            first = info.start - info.start % mmap.PAGESIZE
            if info.end > first:
                self._map.madvise(advice, first, info.end - first)

        return TensorHandle(
            info.name, info.dtype, info.shape, lambda: self._view[info.start : info.end], _advise=advise
        )


def open_tensors(
    folder: Folder, name: str, *, limit_bytes: int = FULL_HEADER_BYTES
) -> tuple[dict[str, TensorHandle], Mapping[str, str]]:
    """Handles on the tensors of one safetensors file, and its metadata. Raises BrokenContainer."""
    header = read_folder_header(folder, name, limit_bytes=limit_bytes)
    weights = _MappedWeights(folder, name)
    return {info.name: weights.handle(info) for info in header.tensors.values()}, header.metadata


@dataclass(frozen=True)
class Checkpoint:
    """A full set of weights: one safetensors file, shards with their index, or handles from anywhere.

    name: how messages call it. config: config.json, {} where there is none. files: paths of the weight files, relative
    to the folder. prefix: the part of the folder it was opened in, "" for all of it.
    """

    tensors: Mapping[str, TensorHandle]
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    name: str = "base"
    folder: Folder | None = None
    prefix: str = ""

    @classmethod
    def open(cls, folder: Folder, prefix: str = "", *, name: str = "base") -> Self:
        """The checkpoint in `prefix` of a folder, headers read and nothing else.

        Raises BrokenContainer for a file or an index that is wrong, InvalidPatch where there are no weights.
        """
        weights = find_weights(folder, prefix)
        if weights is None:
            raise InvalidPatch(f"{name}: no model.safetensors and no model.safetensors.index.json in {prefix or '.'!r}")
        files: tuple[str, ...] = (weights,)
        weight_map: Mapping[str, str] | None = None
        if weights.endswith(".index.json"):
            weight_map = _weight_map(folder, weights)
            files = tuple(sorted({join(prefix, shard) for shard in weight_map.values()}))
        tensors: dict[str, TensorHandle] = {}
        for file in files:
            found, _ = open_tensors(folder, file)
            if weight_map is not None:
                _check_shard(file, found, weight_map, weights)
            tensors |= found
        config = join(prefix, "config.json")
        return cls(
            tensors=dict(sorted(tensors.items())),
            config=read_json(folder, config) if config in folder.names() else {},
            files=files,
            name=name,
            folder=folder,
            prefix=prefix,
        )


def check_fits(model: Checkpoint, base: Checkpoint) -> None:
    """Raises UnknownSite or ShapeMismatch unless every parameter of the model is one of the base, in its shape."""
    for name, tensor in model.tensors.items():
        if name not in base.tensors:
            raise UnknownSite(name, base.name)
        if base.tensors[name].shape != tensor.shape:
            raise ShapeMismatch(name, tensor.shape, base.name, base.tensors[name].shape)


def find_weights(folder: Folder, prefix: str = "") -> str | None:
    """Path of a checkpoint's one weight file, else of its shard index, else None. Looks in `prefix` alone."""
    here = [name for name in folder.names() if name.rpartition("/")[0] == prefix]
    for wanted in ("model.safetensors", "model.safetensors.index.json"):
        if join(prefix, wanted) in here:
            return join(prefix, wanted)
    indices = [name for name in here if name.endswith(".safetensors.index.json")]
    others = ("adapter_model.safetensors", "statistics.safetensors")
    single = [name for name in here if name.endswith(".safetensors") and not name.endswith(others)]
    found = indices or single
    return found[0] if len(found) == 1 else None


def _weight_map(folder: Folder, index: str) -> Mapping[str, str]:
    """Tensor name -> shard's file name, all beside the index; a missing shard is an incomplete upload, no attack."""
    weight_map = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenContainer(index, "st.index", "weight_map is missing or empty")
    prefix = index.rpartition("/")[0]
    names = set(folder.names())
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or not is_inside(shard):
            raise BrokenContainer(
                index, "st.index", f"{tensor[:100]}: {str(shard)[:100]!r} is no file beside the index"
            )
        if join(prefix, shard) not in names:
            raise InvalidPatch(f"{index}: {tensor[:100]} is said to lie in {shard}, which is missing")
    return weight_map


def _check_shard(file: str, found: Iterable[str], weight_map: Mapping[str, str], index: str) -> None:
    shard = file.rpartition("/")[2]
    listed = {tensor for tensor, its_shard in weight_map.items() if its_shard == shard}
    different = sorted(listed ^ set(found))
    if different:
        raise InvalidPatch(f"{index}: {different[0]} is not in both the index and {shard}")
