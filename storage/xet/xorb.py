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
from dataclasses import dataclass

import lz4.frame
import numpy as np

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.hashes import HASH_BYTES, chunk_hash, from_text, merkle_root, to_text

MAX_CHUNKS = 8192
MAX_CHUNK_BYTES = 128 * 1024
"""Uncompressed."""
MAX_RAW_BYTES = 64 * 1024 * 1024
"""Of one xorb, uncompressed."""

_HEADER_BYTES = 8
_MAX_STORED_BYTES = 2 * MAX_CHUNK_BYTES
MAX_WIRE_BYTES = MAX_RAW_BYTES + _HEADER_BYTES * MAX_CHUNKS
"""Of one xorb as it is sent: a server takes bodies up to this."""

_ROW = struct.Struct(f"<III{HASH_BYTES}s")
_AS_IS, _LZ4, _GROUPED_LZ4 = 0, 1, 2


@dataclass(frozen=True)
class Chunk:
    """One row of a chunk table: where the chunk lies in its xorb, with its header, and what it unpacks to."""

    offset: int
    wire_bytes: int
    raw_bytes: int
    hash: bytes


class ChunkTable:
    """The chunks of a checked xorb, over the packed rows that a database keeps."""

    def __init__(self, rows: bytes) -> None:
        """rows: as `check_xorb` gives them. Raises InvalidXet when they were cut."""
        if not rows or len(rows) % _ROW.size:
            raise InvalidXet(f"a chunk table of {len(rows)} bytes; rows have {_ROW.size}")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    def chunks(self, start: int, end: int) -> Iterator[Chunk]:
        """The chunks [start, end); the bounds lie within the table."""
        return (Chunk(*row) for row in _ROW.iter_unpack(self._rows[start * _ROW.size : end * _ROW.size]))


def check_xorb(content: bytes | memoryview, xorb_hash: str) -> bytes:
    """The packed chunk table of a xorb, every chunk of which was unpacked and hashed.

    content: the whole xorb as sent. xorb_hash: the name it was announced under, in text form.
    Raises InvalidXet: a bad header, too many or too large chunks, data that does not unpack to what its header says,
    another hash than announced. Unpacks one chunk at a time.
    """
    announced = from_text(xorb_hash)
    table = list(_walk(memoryview(content)))
    root = merkle_root((chunk.hash, chunk.raw_bytes) for chunk in table)
    if root != announced:
        raise InvalidXet(f"xorb was announced as {xorb_hash} and is {to_text(root)}; send it again")
    return b"".join(_ROW.pack(chunk.offset, chunk.wire_bytes, chunk.raw_bytes, chunk.hash) for chunk in table)


def _walk(content: memoryview) -> Iterator[Chunk]:
    if len(content) > MAX_WIRE_BYTES:
        raise InvalidXet(f"xorb has {len(content)} bytes; at most {MAX_WIRE_BYTES} are allowed")
    offset = raw_total = count = 0
    while offset < len(content):
        stored_bytes, raw_bytes = _header(content, offset)
        wire_bytes = _HEADER_BYTES + stored_bytes
        raw_total += raw_bytes
        count += 1
        if count > MAX_CHUNKS or raw_total > MAX_RAW_BYTES:
            raise InvalidXet(f"xorb has more than {MAX_CHUNKS} chunks or {MAX_RAW_BYTES} bytes uncompressed")
        raw = unpack(content[offset : offset + wire_bytes])
        yield Chunk(offset, wire_bytes, raw_bytes, chunk_hash(raw))
        offset += wire_bytes


def _header(content: memoryview, offset: int) -> tuple[int, int]:
    """(stored bytes, uncompressed bytes) of the chunk at `offset`, all of which lies inside the xorb."""
    header = bytes(content[offset : offset + _HEADER_BYTES])
    stored_bytes, raw_bytes = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
    if len(header) < _HEADER_BYTES or header[0] != 0:
        raise InvalidXet(f"xorb: no chunk header of version 0 at byte {offset}")
    if not 0 < raw_bytes <= MAX_CHUNK_BYTES or not 0 < stored_bytes <= _MAX_STORED_BYTES:
        raise InvalidXet(f"xorb: the chunk at byte {offset} unpacks {stored_bytes} to {raw_bytes} bytes; out of bounds")
    if offset + _HEADER_BYTES + stored_bytes > len(content):
        raise InvalidXet(f"xorb ends inside the chunk at byte {offset}")
    return stored_bytes, raw_bytes


def unpack(wire: bytes | memoryview) -> bytes | memoryview:
    """The uncompressed bytes of one chunk with its header. Raises InvalidXet when they are not as many as it says."""
    wire = memoryview(wire)
    _, raw_bytes = _header(wire, 0)
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
