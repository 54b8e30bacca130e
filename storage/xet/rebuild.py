"""From a shard's record and checked xorbs to the bytes of a file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.hashes import file_hash, range_hash, to_text
from adapterhub.storage.xet.shard import FileRecord, Term
from adapterhub.storage.xet.xorb import Chunk, ChunkTable, unpack

BATCH_BYTES = 1 << 20
"""Read and given on at once: so few that they are hashed and written while the processor's cache still has them."""


@dataclass(frozen=True)
class Xorb:
    """A checked xorb: its chunks, and `read(start, end)`, which gives those of its bytes in pieces of any size."""

    chunks: ChunkTable
    read: Callable[[int, int], Iterator[bytes]]


OpenXorb = Callable[[str], Xorb]
"""The xorb of that hash; raises InvalidXet where the sender has none of that name. Asked once a term: keep them."""


def checked_size(file: FileRecord, open_xorb: OpenXorb) -> int:
    """Bytes of the file that `rebuild` would yield, from the chunk tables alone.

    Reads no chunk, so that a quota can be asked before work starts: a small shard may name terabytes. Raises InvalidXet
    when a term lies outside its xorb, has another length or range hash, or when the file hash is another.
    """
    total = 0

    def leaves() -> Iterator[tuple[bytes, int]]:
        nonlocal total
        for term in file.terms():
            for chunk in _chunks(term, open_xorb(term.xorb_hash)):
                total += chunk.raw_bytes
                yield chunk.hash, chunk.raw_bytes

    found = to_text(file_hash(leaves()))
    if found != file.file_hash:
        raise InvalidXet(f"file was announced as {file.file_hash}, and its chunks make {found}")
    return total


def rebuild(file: FileRecord, open_xorb: OpenXorb) -> Iterator[Sequence[bytes | memoryview]]:
    """The file's bytes, up to BATCH_BYTES of chunks at once, so that they may be written together.

    The whole is for the caller to hash, and to compare with `file.digest`.

    Raises InvalidXet as `checked_size` does for terms, and when a stored xorb ends early or does not unpack.
    """
    batch: list[bytes | memoryview] = []
    waiting = 0
    for raw in _raw_chunks(file, open_xorb):
        batch.append(raw)
        waiting += len(raw)
        if waiting >= BATCH_BYTES:
            yield batch
            batch, waiting = [], 0
    yield batch


def _raw_chunks(file: FileRecord, open_xorb: OpenXorb) -> Iterator[bytes | memoryview]:
    for term in file.terms():
        xorb = open_xorb(term.xorb_hash)
        chunks = _chunks(term, xorb)
        pieces = xorb.read(chunks[0].offset, chunks[-1].offset + chunks[-1].wire_bytes)
        wires = _cut(pieces, [chunk.wire_bytes for chunk in chunks])
        for chunk in chunks:
            wire = next(wires, None)
            if wire is None:
                raise InvalidXet(f"xorb {term.xorb_hash} ends early, in the chunk at byte {chunk.offset}")
            yield unpack(wire)


def _cut(pieces: Iterator[bytes], sizes: Sequence[int]) -> Iterator[memoryview]:
    """The bytes of `pieces` in views of those sizes, fewer when they end early; copied only across two pieces."""
    rest = memoryview(b"")
    for size in sizes:
        if len(rest) < size:
            gathered = bytearray(rest)
            while len(gathered) < size:
                piece = memoryview(next(pieces, b""))
                if not piece:
                    return
                missing = size - len(gathered)
                gathered += piece[:missing]
                rest = piece[missing:]
            yield memoryview(gathered)
        else:
            yield rest[:size]
            rest = rest[size:]


def _chunks(term: Term, xorb: Xorb) -> list[Chunk]:
    """The chunks of a term that is what it says."""
    if term.end > len(xorb.chunks):
        raise InvalidXet(f"chunks {term.start}-{term.end} of xorb {term.xorb_hash}, which has {len(xorb.chunks)}")
    chunks = list(xorb.chunks.chunks(term.start, term.end))
    if sum(chunk.raw_bytes for chunk in chunks) != term.raw_bytes:
        raise InvalidXet(f"chunks {term.start}-{term.end} of xorb {term.xorb_hash} are not {term.raw_bytes} bytes long")
    if range_hash(b"".join(chunk.hash for chunk in chunks)) != term.range_hash:
        raise InvalidXet(f"range hash of chunks {term.start}-{term.end} of xorb {term.xorb_hash} is not the right one")
    return chunks
