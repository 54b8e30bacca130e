"""Bytes on their way into a store: a private file, hashed and counted while it grows."""

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from adapterhub.storage.blobs import PIECE_BYTES, BlobStat, BlobStore
from adapterhub.storage.errors import DigestMismatch, StoreUnavailable, TooLarge

Publish = Callable[[Path, str, int], BlobStat]
"""Makes a finished file visible: (file, its digest, its size) -> what is stored. The file is thrown away after it."""


class SpoolingWriter:
    """A BlobWriter that gathers the bytes in a file of `folder` and gives the whole, named, to `publish`.

    Memory stays at one piece. The file is made with O_EXCL and O_NOFOLLOW and mode 0600: nobody else's file or link is
    ever opened. With `durable` it is synced to disk before `publish` sees it.
    """

    def __init__(self, folder: Path, publish: Publish, *, limit_bytes: int | None = None, durable: bool) -> None:
        self._path = folder / uuid4().hex
        self._publish = publish
        self._limit_bytes = limit_bytes
        self._durable = durable
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")
        except OSError as error:
            raise StoreUnavailable(f"{folder}: cannot make a file there: {error.strerror}") from error

    def write(self, piece: bytes | memoryview) -> None:
        """Append `piece`. Raises TooLarge past the limit, and StoreUnavailable when the disk is full."""
        self._size_bytes += memoryview(piece).nbytes
        if self._limit_bytes is not None and self._size_bytes > self._limit_bytes:
            self.abort()
            raise TooLarge("this content", self._limit_bytes)
        self._hash.update(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            self.abort()
            raise StoreUnavailable(f"{self._path.parent}: cannot write: {error.strerror}") from error

    def content(self) -> memoryview:
        """What was written so far, mapped."""
        if self._size_bytes == 0:
            return memoryview(b"")
        try:
            self._file.flush()
            with self._path.open("rb") as written:
                # unmapped when nothing refers to it any more; closing it would fail while an error's frames still do
                return memoryview(mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise StoreUnavailable(f"{self._path.parent}: cannot read back: {error.strerror}") from error

    def commit(self, expected: str | None = None) -> BlobStat:
        """Publish the bytes. Raises DigestMismatch, and publishes nothing, when they are not those `expected`."""
        found = "sha256:" + self._hash.hexdigest()
        try:
            if expected is not None and expected != found:
                raise DigestMismatch(expected, found)
            self._seal()
            return self._publish(self._path, found, self._size_bytes)
        finally:
            self.abort()

    def _seal(self) -> None:
        try:
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise StoreUnavailable(f"{self._path.parent}: cannot write: {error.strerror}") from error

    def abort(self) -> None:
        """Throw the file away; nothing happens when it is gone."""
        # closing flushes, and a full disk refuses that: the bytes are unwanted anyway, the descriptor is closed
        try:
            self._file.close()
        except OSError:
            pass
        finally:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> "SpoolingWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


def copy_file(store: BlobStore, path: Path, expected: str | None) -> BlobStat:
    """What `store.put_file` promises, for back ends with no shorter way than through their writer."""
    with path.open("rb") as file, store.writer() as writer:
        while piece := file.read(PIECE_BYTES):
            writer.write(piece)
        return writer.commit(expected)
