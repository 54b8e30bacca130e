"""Xorbs and shards made by hand, well-formed or with a fault."""

import struct
from dataclasses import replace

import lz4.frame

from adapterhub.storage.blobs import digest_by
from adapterhub.storage.xet.hashes import HASH_BYTES, chunk_hash, file_hash, from_text, merkle_root, range_hash, to_text
from adapterhub.storage.xet.rebuild import OpenXorb, rebuild
from adapterhub.storage.xet.shard import FileRecord, Term
from adapterhub.storage.xet.xorb import XorbCheck

END = b"\xff" * HASH_BYTES + bytes(16)
HEADER = struct.pack(
    "<15s17sQQ",
    b"HFRepoMetaData",
    bytes([85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169]),
    2,
    0,
)


def wire_chunk(raw: bytes, scheme: int = 0, *, claimed_bytes: int | None = None) -> bytes:
    """One chunk as it is sent; `claimed_bytes` replaces the true uncompressed length."""
    data = raw
    if scheme == 2:
        data = raw[0::4] + raw[1::4] + raw[2::4] + raw[3::4]
    if scheme:
        data = lz4.frame.compress(data)
    length = len(raw) if claimed_bytes is None else claimed_bytes
    return b"\0" + len(data).to_bytes(3, "little") + bytes([scheme]) + length.to_bytes(3, "little") + data


def check_xorb(content: bytes, xorb_hash: str) -> bytes:
    """The chunk table of a xorb that came in one piece."""
    check = XorbCheck()
    check.update(content)
    return check.finish(from_text(xorb_hash))


def stored_name(content: bytes) -> str:
    """The digest under which a store keeps these bytes of a xorb."""
    check = XorbCheck()
    check.update(content)
    return digest_by(check)


def xorb_name(chunks: list[bytes]) -> str:
    """The hash of a xorb with these chunks."""
    return to_text(merkle_root((chunk_hash(chunk), len(chunk)) for chunk in chunks))


def term(chunks: list[bytes], start: int, end: int) -> Term:
    """The true term for chunks [start, end) of the xorb with these chunks."""
    part = chunks[start:end]
    proof = range_hash(b"".join(chunk_hash(chunk) for chunk in part))
    return Term(xorb_name(chunks), sum(map(len, part)), start, end, proof)


def shard(
    terms: list[Term], chunks: list[bytes], *, flags: int = 3 << 30, sha256: str = "ab" * 32, name: str | None = None
) -> bytes:
    """A shard of one file made of `terms`, all of one xorb with these chunks; `name` replaces the true file hash."""
    leaves = [(chunk_hash(chunk), len(chunk)) for each in terms for chunk in chunks[each.start : each.end]]
    name = name or to_text(file_hash(leaves))
    rows = [HEADER, from_text(name) + struct.pack("<II8x", flags, len(terms))]
    for each in terms:
        rows.append(from_text(each.xorb_hash) + struct.pack("<IIII", 0, each.raw_bytes, each.start, each.end))
    if flags & 1 << 31:
        rows += [each.range_hash + bytes(16) for each in terms]
    if flags & 1 << 30:
        rows.append(from_text(sha256) + bytes(16))
    return b"".join([*rows, END, END])


def forged(true: Term, **fields: object) -> Term:
    """`true` with some fields replaced."""
    return replace(true, **fields)  # type: ignore[arg-type]


def joined(record: FileRecord, open_xorb: OpenXorb) -> bytes:
    """The file that the record describes, whole."""
    return b"".join(piece for pieces in rebuild(record, open_xorb) for piece in pieces)
