"""Blobs as plain files of a folder: `file:///var/lib/adapterhub/blobs`.

    objects/sha256/ab/cd/<64 hex>     blobs, read-only; `sha256sum` of a file gives its name
    objects/blake3/ab/cd/<64 hex>     those named so; `b3sum` gives theirs
    objects/xorb/ab/cd/<64 hex>       xorbs, named by their chunks
    tmp/<uuid>                        bytes still arriving; on the same file system, so that linking is atomic

Order of a write, so that a blob is whole and durable before anything may point at it: bytes to tmp, fsync of the file,
link to its name (which fails where the name is taken, and never overwrites), fsync of the folder.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
)
from adapterhub.storage.errors import BlobNotFound, InvalidStoreUrl, StoreUnavailable
from adapterhub.storage.spool import SpoolingWriter, copy_file

_HEX = "[0-9a-f]"
_ABANDONED_S = 24 * 3600
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """The blobs of one folder, which is made where it is missing. Several processes may share it."""

    capabilities = Capabilities(has_local_paths=True)

    def __init__(self, root: Path) -> None:
        self._objects = root / "objects"
        self._tmp = root / "tmp"
        self._durable_folders: set[Path] = set()
        with _as_unavailable(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tmp.mkdir(mode=0o700, exist_ok=True)
            self._objects.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()

    def stat(self, digest: str) -> BlobStat | None:
        """Size and age of the blob, None where there is none."""
        with _as_unavailable(self._objects):
            try:
                found = self._file(digest).lstat()
            except FileNotFoundError:
                return None
        return BlobStat(digest, found.st_size, found.st_mtime)

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Bytes [start, end) in pieces; the file is open from the call on, so that `delete` does not disturb it."""
        pieces = self._pieces(digest, start, end, piece_bytes)
        next(pieces)
        return pieces

    def _pieces(self, digest: str, start: int, end: int | None, piece_bytes: int) -> Iterator[bytes]:
        with _as_unavailable(self._objects):
            try:
                file = os.fdopen(os.open(self._file(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", 0)
            except FileNotFoundError:
                raise BlobNotFound(digest) from None
            with file:
                start, end = check_range(digest, start, end, os.fstat(file.fileno()).st_size)
                yield b""  # taken by `read`: whatever is refused is refused at the call
                file.seek(start)
                while start < end:
                    piece = file.read(min(piece_bytes, end - start))
                    if not piece:
                        raise StoreUnavailable(f"{digest}: the file on disk ends early, at byte {start}")
                    start += len(piece)
                    yield piece

    def writer(self, *, limit_bytes: int | None = None, made: Hash | None = None) -> SpoolingWriter:
        """A writer for one new blob."""
        return SpoolingWriter(self._tmp, self._publish, limit_bytes=limit_bytes, made=made, durable=True)

    def put_file(self, path: Path, *, expected: str | None = None) -> BlobStat:
        """Store a copy of the file's content."""
        return copy_file(self, path, expected)

    def path(self, digest: str) -> Path:
        """The file that is the blob."""
        if self.stat(digest) is None:
            raise BlobNotFound(digest)
        return self._file(digest)

    def presign(self, digest: str, *, filename: str, expires_s: int) -> None:
        """None: files have no address on the network."""

    def delete(self, digest: str) -> None:
        """Remove the blob; nothing happens where there is none."""
        with _as_unavailable(self._objects):
            self._file(digest).unlink(missing_ok=True)

    def list(self) -> Iterator[BlobStat]:
        """Every blob, in order of digest; one that is deleted meanwhile may be left out."""
        with _as_unavailable(self._objects):
            for algorithm in sorted(HASHES):
                # name by name, as a store may hold millions
                for outer in sorted((self._objects / algorithm).glob(_HEX * 2)):
                    for inner in sorted(outer.glob(_HEX * 2)):
                        for file in sorted(inner.glob(_HEX * 64)):
                            found = self.stat(f"{algorithm}:{file.name}")
                            if found is not None:
                                yield found

    def _file(self, digest: str) -> Path:
        algorithm, _, name = check_digest(digest).partition(":")
        return self._objects / algorithm / name[:2] / name[2:4] / name

    def _publish(self, spooled: Path, digest: str, size_bytes: int) -> BlobStat:
        target = self._file(digest)
        with _as_unavailable(self._objects):
            spooled.chmod(0o400)
            self._make_folder(target.parent)
            try:
                _link(spooled, target)
            except FileExistsError:
                _refuse_other_size(target, size_bytes)
            # also where another writer came first: its own sync may not be done yet
            _sync_folder(target.parent)
            return BlobStat(digest, size_bytes, target.lstat().st_mtime)

    def _make_folder(self, folder: Path) -> None:
        """Make the folder durable, up to the root of the objects; remembered, as nothing removes folders."""
        if folder in self._durable_folders or folder == self._objects:
            return
        self._make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)
        self._durable_folders.add(folder)

    def _sweep(self) -> None:
        """Remove what writers that died left behind: files that nobody has written to for a day."""
        oldest = time.time() - _ABANDONED_S
        for file in self._tmp.iterdir():
            try:
                if file.lstat().st_mtime < oldest:
                    file.unlink()
            except FileNotFoundError:
                continue  # its writer, or another process that sweeps, was quicker


def _link(spooled: Path, target: Path) -> None:
    """Give `spooled` the name `target`. Raises FileExistsError, and changes nothing, where the name is taken."""
    try:
        os.link(spooled, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links the test and the rename are two steps. Both writers of a race hold the same verified bytes.
        if target.exists():
            raise FileExistsError(target) from None
        spooled.rename(target)


def _refuse_other_size(target: Path, size_bytes: int) -> None:
    found = target.lstat().st_size
    if found != size_bytes:
        raise StoreUnavailable(f"{target} is damaged: {found} bytes on disk, {size_bytes} in truth; move it away first")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_unavailable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{root}: {error.strerror}") from error


def _open(url: str, spool: Path | None) -> BlobStore:
    path = url.removeprefix("file://")
    if not path.startswith("/"):
        raise InvalidStoreUrl(url, ("file:///absolute/folder",))
    return LocalStore(Path(path))


BACKEND = Backend(scheme="file", example="file:///var/lib/adapterhub/blobs", open=_open)
