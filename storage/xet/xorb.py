"""Xorbs: blocks of compressed chunks, as the client uploads them.

    off  size  field, little-endian; chunks follow one another, counted from 0
    0    1     version, 0
    1    3     compressed bytes
    4    1     scheme: 0 as is, 1 LZ4 frame, 2 bytes grouped by four and then LZ4 frame
    5    3     uncompressed bytes
    8    n     data

A xorb that was checked once is described by its chunk table, 44 bytes a chunk, so that nothing is ever parsed twice:

    off  size  field, little-endian
    0    4     offset of the chunk's header in the xorb
    4    4     bytes in the xorb, with the header
    8    4     uncompressed bytes
    12   32    chunk hash

Source: huggingface/hub-docs docs/xet/xorb.md. Differs: the limit of 64 MiB holds for uncompressed bytes, since clients
send incompressible chunks as they are and their headers come on top.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import lz4.frame
import numpy as np
from blake3 import blake3

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.hashes import HASH_BYTES, chunk_hash, merkle_root, to_text

MAX_CHUNKS = 8192
MAX_CHUNK_BYTES = 128 * 1024
"""Uncompressed."""
MAX_RAW_BYTES = 64 * 1024 * 1024
"""Of one xorb, uncompressed."""

_HEADER = struct.Struct("<II")
"""Two numbers of three bytes, each above one of one byte: the version, the scheme."""
_HEADER_BYTES = _HEADER.size
_MAX_STORED_BYTES = 2 * MAX_CHUNK_BYTES
MAX_WIRE_BYTES = MAX_RAW_BYTES + _HEADER_BYTES * MAX_CHUNKS
"""Of one xorb as it is sent: a server takes bodies up to this."""

_ROW = struct.Struct(f"<III{HASH_BYTES}s")
_AS_IS, _LZ4, _GROUPED_LZ4 = 0, 1, 2


class Chunk(NamedTuple):
    """One row of a chunk table: where the chunk lies in its xorb, with its header, and what it unpacks to."""

    offset: int
    wire_bytes: int
    raw_bytes: int
    hash: bytes


class ChunkTable:
    """The chunks of a checked xorb, over the packed rows that a database keeps."""

    def __init__(self, rows: bytes) -> None:
        """rows: as `XorbCheck` gives them. Raises InvalidXet when they were cut."""
        if not rows or len(rows) % _ROW.size:
            raise InvalidXet(f"a chunk table of {len(rows)} bytes; rows have {_ROW.size}")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    def chunks(self, start: int, end: int) -> Iterator[Chunk]:
        """The chunks [start, end); the bounds lie within the table."""
        return (Chunk(*row) for row in _ROW.iter_unpack(self._rows[start * _ROW.size : end * _ROW.size]))


class XorbCheck:
    """Checks a xorb while its bytes arrive, as the holder of no more of them than one chunk.

    Every chunk is unpacked and hashed once it is whole, while its bytes are still in the processor's cache: reading a
    stored xorb back to check it would cost a copy of it, or its size in mapped memory.

    It also makes the digest that names the xorb in a store: the BLAKE3 over each chunk's header and one hash, which is
    the chunk hash of a chunk that lies there as it is and the BLAKE3 of one that is compressed; and over the BLAKE3 of
    what follows the last whole chunk, if anything does. It means exactly one run of bytes, where the xorb's own hash
    does not: the same chunks may be compressed in several ways.
    """

    name = "xorb"

    def __init__(self) -> None:
        self._digest = blake3()
        self._begun = bytearray()
        self._offset = self._raw_total = 0
        self._leaves: list[tuple[bytes, int]] = []
        self._rows: list[bytes] = []

    def update(self, piece: bytes | memoryview, /) -> None:
        """Look at the next bytes, cut anywhere.

        Raises InvalidXet: a bad header, too many or too large chunks, data that does not unpack to what its header
        says.
        """
        rest = memoryview(piece)
        while rest:
            rest = rest[self._take(rest) :]

    def hexdigest(self) -> str:
        """What names the bytes in a store."""
        whole = self._digest.copy()
        if self._begun:
            whole.update(blake3(self._begun).digest())
        return whole.hexdigest()

    def finish(self, announced: bytes) -> bytes:
        """The packed chunk table; all bytes came. Raises InvalidXet for a cut xorb, and another hash than announced."""
        if self._begun:
            _header(self._begun, self._offset)
            raise InvalidXet(f"xorb ends inside the chunk at byte {self._offset}")
        root = merkle_root(self._leaves)
        if root != announced:
            raise InvalidXet(f"xorb was announced as {to_text(announced)} and is {to_text(root)}; send it again")
        return b"".join(self._rows)

    def _take(self, rest: memoryview) -> int:
        """How many of these bytes go to the chunk at hand; copied only where it is cut."""
        if not self._begun and len(rest) >= _HEADER_BYTES:
            wire_bytes, raw_bytes = _header(rest, self._offset)
            if wire_bytes <= len(rest):
                self._add(rest[:wire_bytes], raw_bytes)
                return wire_bytes
        missing = _HEADER_BYTES - len(self._begun)
        if missing <= 0:
            wire_bytes, raw_bytes = _header(self._begun, self._offset)
            missing = wire_bytes - len(self._begun)
        taken = min(missing, len(rest))
        self._begun += rest[:taken]
        if taken == missing and len(self._begun) > _HEADER_BYTES:
            self._add(memoryview(self._begun), raw_bytes)
            self._begun = bytearray()
        return taken

    def _add(self, wire: memoryview, raw_bytes: int) -> None:
        self._raw_total += raw_bytes
        if len(self._rows) >= MAX_CHUNKS or self._raw_total > MAX_RAW_BYTES:
            raise InvalidXet(f"xorb has more than {MAX_CHUNKS} chunks or {MAX_RAW_BYTES} bytes uncompressed")
        found = chunk_hash(unpack(wire))
        self._digest.update(wire[:_HEADER_BYTES])
        self._digest.update(found if wire[4] == _AS_IS else blake3(wire[_HEADER_BYTES:]).digest())
        self._leaves.append((found, raw_bytes))
        self._rows.append(_ROW.pack(self._offset, len(wire), raw_bytes, found))
        self._offset += len(wire)


def _header(wire: bytes | bytearray | memoryview, offset: int) -> tuple[int, int]:
    """(bytes with the header, uncompressed bytes) of the chunk that `wire` begins with, at `offset` of its xorb."""
    if len(wire) < _HEADER_BYTES or wire[0] != 0:
        raise InvalidXet(f"xorb: no chunk header of version 0 at byte {offset}")
    low, high = _HEADER.unpack_from(wire)
    stored_bytes, raw_bytes = low >> 8, high >> 8
    if not 0 < raw_bytes <= MAX_CHUNK_BYTES or not 0 < stored_bytes <= _MAX_STORED_BYTES:
        raise InvalidXet(f"xorb: the chunk at byte {offset} unpacks {stored_bytes} to {raw_bytes} bytes; out of bounds")
    return _HEADER_BYTES + stored_bytes, raw_bytes


def unpack(wire: bytes | memoryview) -> bytes | memoryview:
    """The uncompressed bytes of one chunk with its header. Raises InvalidXet when they are not as many as it says."""
    wire = memoryview(wire)
    wire_bytes, raw_bytes = _header(wire, 0)
    if len(wire) != wire_bytes:
        raise InvalidXet(f"xorb: a chunk says {wire_bytes} bytes with its header and has {len(wire)}")
    scheme, data = wire[4], wire[_HEADER_BYTES:]
    if scheme == _AS_IS:
        raw: bytes | memoryview = data
    elif scheme == _LZ4:
        raw = _decompress(data, raw_bytes)
    elif scheme == _GROUPED_LZ4:
        raw = _ungroup(_decompress(data, raw_bytes))
    else:
        raise InvalidXet(f"xorb: a chunk of unknown compression scheme {scheme}")
    if len(raw) != raw_bytes:
        raise InvalidXet(f"xorb: a chunk says {raw_bytes} bytes and holds {len(raw)}")
    return raw


def _decompress(data: memoryview, raw_bytes: int) -> bytes:
    """The content of one LZ4 frame, never more than `raw_bytes` of it in memory, whatever the frame claims."""
    decoder = lz4.frame.LZ4FrameDecompressor()
    try:
        # one byte of room more: the frame's end mark is read only when the output was not cut
        raw: bytes = decoder.decompress(data, max_length=raw_bytes + 1)
    except RuntimeError as error:
        raise InvalidXet(f"xorb: a chunk that is no LZ4 frame: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise InvalidXet(f"xorb: a chunk whose LZ4 frame does not end with its {raw_bytes} bytes")
    return raw


def _ungroup(grouped: bytes) -> bytes:
    """The bytes in their order: they come as bytes 0, 4, 8 …, then 1, 5, 9 …, then 2 …, then 3 …"""
    source = np.frombuffer(grouped, np.uint8)
    raw = np.empty_like(source)
    start = 0
    for lane in range(4):
        length = (len(source) - lane + 3) // 4
        raw[lane::4] = source[start : start + length]
        start += length
    return raw.tobytes()
