"""Shards: how files are put together from chunks, as the client uploads them.

Rows of 48 bytes, little-endian:

    header        magic 32, version u64 = 2, footer bytes u64 = 0
    per file      file hash 32, flags u32, terms u32, 8 unused
      terms       xorb hash 32, flags u32, uncompressed bytes u32, first chunk u32, end chunk u32
      ranges      range hash 32, 16 unused              one a term; flag 1 << 31
      metadata    sha256 32, 16 unused                  flag 1 << 30
    end           32 times 0xFF, 16 unused
    per xorb      xorb hash 32, flags u32, chunks u32, uncompressed bytes u32, bytes on disk u32 (clients send 0)
      chunks      chunk hash 32, offset u32, length u32, flags u32, 4 unused
    end           32 times 0xFF, 16 unused

Source: huggingface/hub-docs docs/xet/shard.md. Differs: range hashes are always asked for; they prove that the sender
knows the chunks, where a hash alone could be overheard.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.hashes import HASH_BYTES, to_text
from adapterhub.storage.xet.xorb import MAX_CHUNKS, MAX_RAW_BYTES

MAX_SHARD_BYTES = 64 * 1024 * 1024

_ROW_BYTES = 48
_MAGIC = b"HFRepoMetaData\x00" + bytes([85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169])
_HEADER = struct.Struct("<32sQQ")
_RECORD = struct.Struct("<32sIIII")
_END = b"\xff" * HASH_BYTES
_HAS_RANGES = 1 << 31
_HAS_METADATA = 1 << 30


@dataclass(frozen=True)
class Term:
    """Chunks [start, end) of a xorb, `raw_bytes` long when unpacked, as the client claims."""

    xorb_hash: str
    raw_bytes: int
    start: int
    end: int
    range_hash: bytes


@dataclass(frozen=True)
class FileRecord:
    """One file of a shard. `digest` is "sha256:<hex>" as announced, or None."""

    file_hash: str
    digest: str | None
    _terms: memoryview
    _ranges: memoryview

    def terms(self) -> Iterator[Term]:
        """The file's parts in order; read from the shard's bytes each time, as there may be a million."""
        ranges = struct.iter_unpack(f"<{HASH_BYTES}s16x", self._ranges)
        for (xorb_hash, _, raw_bytes, start, end), (range_hash,) in zip(
            _RECORD.iter_unpack(self._terms), ranges, strict=True
        ):
            yield Term(to_text(xorb_hash), raw_bytes, start, end, range_hash)

    @property
    def claimed_bytes(self) -> int:
        """The file's size if the client is right; `rebuild.checked_size` says whether it is."""
        return sum(term.raw_bytes for term in self.terms())


def parse_shard(content: bytes | memoryview) -> list[FileRecord]:
    """The files that a shard describes.

    Its list of new xorbs is only walked: what a xorb holds is known from the xorb itself. Raises InvalidXet for
    anything that is not exactly a shard; memory stays in proportion to the number of files.
    """
    rows = _Rows(content)
    magic, version, footer_bytes = _HEADER.unpack(rows.take(1))
    if magic != _MAGIC or version != 2 or footer_bytes != 0:
        raise InvalidXet("shard: no header of version 2 without a footer")
    files = list(_files(rows))
    _skip_xorbs(rows)
    return files


class _Rows:
    """The rows of a shard not read yet."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._at = 0
        if len(self._content) > MAX_SHARD_BYTES or len(self._content) % _ROW_BYTES:
            raise InvalidXet(f"shard of {len(self._content)} bytes; not whole rows, or more than {MAX_SHARD_BYTES}")

    def take(self, count: int) -> memoryview:
        """The next `count` rows. Raises InvalidXet when there are not so many."""
        start, end = self._at, self._at + count * _ROW_BYTES
        if end > len(self._content):
            raise InvalidXet(f"shard ends before row {end // _ROW_BYTES}, which an earlier row announces")
        self._at = end
        return self._content[start:end]

    def finish(self) -> None:
        if self._at != len(self._content):
            raise InvalidXet(f"shard: {len(self._content) - self._at} bytes after the end of its xorbs")


def _files(rows: _Rows) -> Iterator[FileRecord]:
    while True:
        file_hash, flags, count, _, _ = _RECORD.unpack(rows.take(1))
        if file_hash == _END:
            return
        name = to_text(file_hash)
        if flags & ~(_HAS_RANGES | _HAS_METADATA) or not flags & _HAS_RANGES or count == 0:
            raise InvalidXet(f"shard: file {name} has flags {flags:#x} and {count} terms; range hashes are needed")
        terms, ranges = rows.take(count), rows.take(count)
        digest = "sha256:" + to_text(bytes(rows.take(1)[:HASH_BYTES])) if flags & _HAS_METADATA else None
        record = FileRecord(name, digest, terms, ranges)
        for term in record.terms():
            if not 0 <= term.start < term.end <= MAX_CHUNKS or not 0 < term.raw_bytes <= MAX_RAW_BYTES:
                raise InvalidXet(
                    f"shard: file {name} asks for {term.raw_bytes} bytes in chunks {term.start}-{term.end}"
                )
        yield record


def _skip_xorbs(rows: _Rows) -> None:
    while True:
        xorb_hash, _, count, raw_bytes, _ = _RECORD.unpack(rows.take(1))
        if xorb_hash == _END:
            rows.finish()
            return
        if not 0 < count <= MAX_CHUNKS or raw_bytes > MAX_RAW_BYTES:
            raise InvalidXet(f"shard: xorb {to_text(xorb_hash)} of {count} chunks and {raw_bytes} bytes; out of bounds")
        rows.take(count)
