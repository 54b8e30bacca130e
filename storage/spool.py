"""Bytes on their way into a store: a private file, hashed and counted while it grows."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from adapterhub.storage.blobs import HASHES, BlobStat, BlobStore, Hash, digest_by
from adapterhub.storage.errors import DigestMismatch, StoreUnavailable, TooLarge

WRITE_BYTES = 1 << 18
"""Written in one call, or a little more. Smaller writes cost more calls, and work done twice on the pages they share;
for larger ones Linux looks for large free pages, which a virtual machine may have given back to its host: fetching them
again took ten times the CPU of the write.
"""
_IOV_MAX = os.sysconf("SC_IOV_MAX")

Publish = Callable[[Path, str, int], BlobStat]
"""Makes a finished file visible: (file, its digest, its size) -> what is stored. The file is thrown away after it."""


class SpoolingWriter:
    """A BlobWriter that gathers the bytes in a file of `folder` and gives the whole, named, to `publish`.

    Memory stays at one piece. The file is made with O_EXCL and O_NOFOLLOW and mode 0600: nobody else's file or link is
    ever opened. With `durable` it is synced to disk before `publish` sees it.
    """

    def __init__(
        self, folder: Path, publish: Publish, *, limit_bytes: int | None, made: Hash | None, durable: bool
    ) -> None:
        self._path = folder / uuid4().hex
        self._publish = publish
        self._limit_bytes = limit_bytes
        self._durable = durable
        self._hash = made or HASHES["sha256"]()
        self._size_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb", 0)
        except OSError as error:
            raise StoreUnavailable(f"{folder}: cannot make a file there: {error.strerror}") from error

    def write(self, *pieces: bytes | memoryview) -> None:
        """Append the pieces. Raises TooLarge past the limit, and StoreUnavailable when the disk is full."""
        self._size_bytes += sum(map(len, pieces))
        if self._limit_bytes is not None and self._size_bytes > self._limit_bytes:
            self.abort()
            raise TooLarge("this content", self._limit_bytes)
        for piece in pieces:
            self._hash.update(piece)
        try:
            write_out(self._file.fileno(), pieces)
        except OSError as error:
            self.abort()
            raise StoreUnavailable(f"{self._path.parent}: cannot write: {error.strerror}") from error

    def commit(self, expected: str | None = None) -> BlobStat:
        """Publish the bytes. Raises DigestMismatch, and publishes nothing, when they are not those `expected`."""
        found = digest_by(self._hash)
        try:
            if expected is not None and expected != found:
                raise DigestMismatch(expected, found)
            self._seal()
            return self._publish(self._path, found, self._size_bytes)
        finally:
            self.abort()

    def _seal(self) -> None:
        try:
            if self._durable:
                os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise StoreUnavailable(f"{self._path.parent}: cannot write: {error.strerror}") from error

    def abort(self) -> None:
        """Throw the file away; nothing happens when it is gone."""
        with suppress(OSError):  # of the disk, about bytes that are unwanted anyway; the descriptor is closed
            self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "SpoolingWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


def write_out(file: int, pieces: Iterable[bytes | memoryview]) -> None:
    """Write the pieces to an open file, one after another, some WRITE_BYTES of them in one call."""
    some: list[bytes | memoryview] = []
    waiting = 0
    for piece in _cut(pieces):
        some.append(piece)
        waiting += len(piece)
        if waiting >= WRITE_BYTES or len(some) == _IOV_MAX:
            _write_together(file, some, waiting)
            some, waiting = [], 0
    _write_together(file, some, waiting)


def _cut(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The pieces, none of them larger than WRITE_BYTES."""
    for piece in pieces:
        if len(piece) <= WRITE_BYTES:
            yield piece
        else:
            whole = memoryview(piece)
            yield from (whole[start : start + WRITE_BYTES] for start in range(0, len(whole), WRITE_BYTES))


def _write_together(file: int, pieces: Sequence[bytes | memoryview], size_bytes: int) -> None:
    rest = size_bytes - os.writev(file, pieces)
    if rest:  # the kernel took a part; the disk may be full, which the next call then says
        joined = memoryview(b"".join(pieces))
        while rest:
            rest -= os.write(file, joined[-rest:])


def copy_file(store: BlobStore, path: Path, expected: str | None) -> BlobStat:
    """What `store.put_file` promises, for back ends with no shorter way than through their writer."""
    with path.open("rb") as file, store.writer() as writer:
        while piece := file.read(WRITE_BYTES):
            writer.write(piece)
        return writer.commit(expected)
