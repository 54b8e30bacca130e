"""Blobs in the memory of one process, for tests and trials: `memory://`."""

import time
from collections.abc import Iterator
from pathlib import Path

from adapterhub.storage.blobs import (
    HASHES,
    PIECE_BYTES,
    Backend,
    BlobStat,
    BlobStore,
    Capabilities,
    Hash,
    check_digest,
    check_range,
    digest_by,
)
from adapterhub.storage.errors import BlobNotFound, DigestMismatch, TooLarge
from adapterhub.storage.spool import copy_file


class MemoryStore:
    """Blobs that last as long as this object."""

    capabilities = Capabilities()

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, float]] = {}

    def stat(self, digest: str) -> BlobStat | None:
        """Size and age of the blob, None where there is none."""
        found = self._blobs.get(check_digest(digest))
        return BlobStat(digest, len(found[0]), found[1]) if found else None

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Bytes [start, end) in pieces."""
        content, _ = self._blobs.get(check_digest(digest)) or (None, None)
        if content is None:
            raise BlobNotFound(digest)
        start, end = check_range(digest, start, end, len(content))
        return (content[at : min(at + piece_bytes, end)] for at in range(start, end, piece_bytes))

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> "MemoryWriter":
        """A writer for one new blob."""
        return MemoryWriter(self._blobs, limit_bytes, made)

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        """Store the file's content."""
        return copy_file(self, path, expected)

    def path(self, digest: str) -> None:
        """None: there are no files. Raises BlobNotFound."""
        if self.stat(digest) is None:
            raise BlobNotFound(digest)

    def presign(self, digest: str, *, filename: str, expires_s: int) -> None:
        """None: memory has no address on the network."""

    def delete(self, digest: str) -> None:
        """Remove the blob; nothing happens where there is none."""
        self._blobs.pop(check_digest(digest), None)

    def list(self) -> Iterator[BlobStat]:
        """Every blob, in order of digest."""
        return (BlobStat(digest, len(content), at) for digest, (content, at) in sorted(self._blobs.items()))


class MemoryWriter:
    """Gathers the bytes of one blob."""

    def __init__(self, blobs: dict[str, tuple[bytes, float]], limit_bytes: int | None, made: Hash | None) -> None:
        self._blobs = blobs
        self._limit_bytes = limit_bytes
        self._hash = made or HASHES["sha256"]()
        self._content = bytearray()

    def write(self, *pieces: bytes | memoryview) -> None:
        """Append the pieces. Raises TooLarge past the limit."""
        for piece in pieces:
            self._content += piece
            self._hash.update(piece)
        if self._limit_bytes is not None and len(self._content) > self._limit_bytes:
            self.abort()
            raise TooLarge("this content", self._limit_bytes)

    def commit(self, expected: str | None = None) -> BlobStat:
        """Make the blob visible. Raises DigestMismatch, and stores nothing, when it is not the one `expected`."""
        content = bytes(self._content)
        found = digest_by(self._hash)
        self.abort()
        if expected is not None and expected != found:
            raise DigestMismatch(expected, found)
        kept, at = self._blobs.setdefault(found, (content, time.time()))
        return BlobStat(found, len(kept), at)

    def abort(self) -> None:
        """Throw the bytes away."""
        self._content = bytearray()

    def __enter__(self) -> "MemoryWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


def _open(url: str, spool: Path | None) -> BlobStore:
    return MemoryStore()


BACKEND = Backend(scheme="memory", example="memory://", open=_open)
