"""A store that keeps local copies of what another holds, for readers that need a file."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterhub.storage.backends.local import LocalStore
from adapterhub.storage.blobs import (
    PIECE_BYTES,
    BlobStat,
    BlobStore,
    BlobWriter,
    Capabilities,
    Hash,
    check_digest,
    hash_like,
)
from adapterhub.storage.errors import BlobNotFound

_GRACE_S = 60.0


class CachedStore:
    """`store`, whose `path` gives a local file: fetched once, checked against its digest, kept until room is needed.

    The folder is a store of its own, whose files' times say when each was last asked for; those asked for longest ago
    go first. Threads and processes may share it: who asks for a blob that another fetches waits for it. A file that is
    open or mapped stays readable after it has gone.
    """

    def __init__(self, store: BlobStore, folder: Path, max_bytes: int, *, grace_s: float = _GRACE_S) -> None:
        """max_bytes: of local copies. One blob larger than that is kept alone.

        grace_s: a file given out so short ago is not removed, so that whoever got its path can open it; the folder may
        exceed max_bytes by those.
        """
        self._store = store
        self._copies = LocalStore(folder)
        self._max_bytes = max_bytes
        self._grace_s = grace_s
        self._locks = folder / "locks"
        self._locks.mkdir(mode=0o700, exist_ok=True)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store behind: `path` gives files here too, but may have to fetch them."""
        return self._store.capabilities

    def stat(self, digest: str) -> BlobStat | None:
        return self._store.stat(digest)

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """From the local copy where there is one; else from the store, without keeping a copy."""
        if self._use(digest) is not None:
            try:
                return self._copies.read(digest, start, end, piece_bytes=piece_bytes)
            except BlobNotFound:
                pass  # removed this moment
        return self._store.read(digest, start, end, piece_bytes=piece_bytes)

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> BlobWriter:
        return self._store.writer(limit_bytes=limit_bytes, made=made)

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        return self._store.put_file(path, expected=expected)

    def path(self, digest: str) -> Path:
        """A local file holding the blob. Raises BlobNotFound, and DigestMismatch when the store gives other bytes."""
        path = self._use(digest)
        if path is None:
            with self._alone(digest):
                path = self._use(digest) or self._fetch(digest)
        return path

    def presign(self, digest: str, *, filename: str, expires_s: int) -> str | None:
        return self._store.presign(digest, filename=filename, expires_s=expires_s)

    def delete(self, digest: str) -> None:
        self._store.delete(digest)
        self._copies.delete(digest)

    def list(self) -> Iterator[BlobStat]:
        return self._store.list()

    def _use(self, digest: str) -> Path | None:
        """The local copy, marked as used now, or None."""
        try:
            path = self._copies.path(digest)
            os.utime(path)
        except (BlobNotFound, FileNotFoundError):
            return None
        return path

    def _fetch(self, digest: str) -> Path:
        found = self._store.stat(digest)
        if found is None:
            raise BlobNotFound(digest)
        self._make_room(found.size_bytes)
        with self._copies.writer(limit_bytes=found.size_bytes, made=hash_like(digest)) as writer:
            for piece in self._store.read(digest):
                writer.write(piece)
            writer.commit(digest)
        return self._copies.path(digest)

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove the copies used longest ago until `wanted_bytes` more fit."""
        copies = sorted(self._copies.list(), key=lambda copy: copy.modified_at)
        excess_bytes = sum(copy.size_bytes for copy in copies) + wanted_bytes - self._max_bytes
        youngest = time.time() - self._grace_s
        for copy in copies:
            if excess_bytes <= 0 or copy.modified_at > youngest:
                return
            self._copies.delete(copy.digest)
            excess_bytes -= copy.size_bytes

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        """Keep other threads and processes from fetching this blob (and one in 4096 others) meanwhile."""
        name = check_digest(digest).partition(":")[2][:3]
        with (self._locks / name).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
