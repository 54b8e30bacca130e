"""A store that fails when told to."""

from collections.abc import Iterator
from pathlib import Path

from adapterhub.storage.blobs import PIECE_BYTES, BlobStat, BlobStore, BlobWriter, Hash
from adapterhub.storage.errors import StoreUnavailable


class FlakyStore:
    """`store`, whose next `failures` steps raise StoreUnavailable; a step is a call, or an item of an iterator."""

    def __init__(self, store: BlobStore, failures: int = 0) -> None:
        self._store = store
        self.capabilities = store.capabilities
        self.failures = failures
        self.reads = 0

    def _step(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the server is away")

    def stat(self, digest: str) -> BlobStat | None:
        self._step()
        return self._store.stat(digest)

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        self.reads += 1
        self._step()
        return self._bytewise(self._store.read(digest, start, end, piece_bytes=piece_bytes))

    def _bytewise(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            for byte in piece:
                yield bytes([byte])
                self._step()

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> BlobWriter:
        self._step()
        return self._store.writer(limit_bytes=limit_bytes, made=made)

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        self._step()
        return self._store.put_file(path, expected=expected)

    def path(self, digest: str) -> Path | None:
        self._step()
        return self._store.path(digest)

    def presign(self, digest: str, *, filename: str, expires_s: int) -> str | None:
        self._step()
        return self._store.presign(digest, filename=filename, expires_s=expires_s)

    def delete(self, digest: str) -> None:
        self._step()
        self._store.delete(digest)

    def list(self) -> Iterator[BlobStat]:
        self._step()
        for found in self._store.list():
            yield found
            self._step()
