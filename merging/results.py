"""A folder of results that appears whole under its name, or never; every file hashed as it is written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from adapterhub.merging.errors import PlanTooLarge
from adapterhub.merging.folders import file_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.merging.folders import Folder


Error = TypeVar("Error", bound=BaseException | None)

_LIST = ".kept.json"
"""Names of finished files with their sizes, digests and notes, for a process that goes on where one was killed."""

_PIECE_BYTES = 4 * 1024 * 1024


class ResultFile(NamedTuple):
    """One written file: path inside the folder, bytes, and "sha256:<hex>"."""

    name: str
    size_bytes: int
    digest: str


class Kept(NamedTuple):
    """A finished file of a folder that is not whole yet, and what its maker wants to know when it goes on."""

    file: ResultFile
    note: Any


class ResultFolder:
    """Collects files beside `out` and renames them into place at `publish`; as a context manager throws them away else.

    out must not exist, or be an empty folder. size_bytes: what is known of the result's size. key: names what is made;
    where a process that made the same was killed, `reuse` gives the files that it had kept. Raises FileExistsError when
    out holds anything, and PlanTooLarge where its disk has not that much room, or runs full later.
    """

    def __init__(self, out: Path, size_bytes: int = 0, key: str = "") -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: already there; name a folder that is empty or does not exist")
        self._out, self._size_bytes, self._key = out, size_bytes, key
        self.path = self._partial(hashlib.sha256(key.encode()).hexdigest()[:12] if key else secrets.token_hex(6))
        self._files: list[ResultFile] = []
        self._kept: dict[str, Kept] = {}
        self._lock: int | None = None
        self._is_published = False

    def _partial(self, token: str) -> Path:
        return self._out.with_name(f".{self._out.name}.{token}.partial")

    def __enter__(self) -> Self:
        there = self.path.exists()
        if not there and free_bytes(self._out) < self._size_bytes:
            raise self._too_large()
        self.path.mkdir(parents=True, exist_ok=bool(self._key))
        if self._key and not self._is_ours():  # somebody else makes the same here and now
            self.path = self._partial(secrets.token_hex(6))
            self.path.mkdir()
        elif there:
            self._kept = self._sound()
            self._clear()
            if free_bytes(self._out) < self._size_bytes - sum(one.file.size_bytes for one in self._kept.values()):
                raise self._discarded(self._too_large())
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._is_published:
            return
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        refusal = self._too_large() if is_full else None  # while what was written still counts
        self._discarded(error)
        if refusal is not None:
            raise refusal from error

    def _discarded(self, error: Error) -> Error:
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()
        return error

    def _too_large(self) -> PlanTooLarge:
        return PlanTooLarge(
            f"{self._out}: the result takes {self._size_bytes} bytes and its disk has {free_bytes(self._out)} free; "
            "make room, or name a folder on another disk. Nothing was changed"
        )

    def add(self, name: str, size_bytes: int, digest: str) -> None:
        """Count in a file that its writer has made durable at `path / name`."""
        self._files.append(ResultFile(name, size_bytes, digest))

    def keep(self, name: str, size_bytes: int, digest: str, note: Any) -> None:
        """Count in a file as `add` does; if this process is killed a later one finds it, with its note (JSON)."""
        self.add(name, size_bytes, digest)
        if not self._key:
            return
        self._kept[name] = Kept(ResultFile(name, size_bytes, digest), note)
        said = {one.file.name: [one.file.size_bytes, one.file.digest, one.note] for one in self._kept.values()}
        fresh = self.path / f"{_LIST}.fresh"
        with fresh.open("wb") as file:
            file.write(json.dumps(said).encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path / _LIST)
        _sync(self.path)

    def reuse(self, name: str) -> Any:
        """Count in a file that a killed process kept, and give its note; None where there is none."""
        if name not in self._kept:
            return None
        self._files.append(self._kept[name].file)
        return self._kept[name].note

    def _is_ours(self) -> bool:
        """Whether no other living process works in the folder; none will while this one does."""
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock()
            return False
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _sound(self) -> dict[str, Kept]:
        """The files of a killed process that are what its list says."""
        try:
            said = json.loads((self.path / _LIST).read_bytes())
        except (OSError, ValueError):
            return {}
        kept = {name: Kept(ResultFile(name, size, digest), note) for name, (size, digest, note) in said.items()}
        here = {path.name: path for path in self.path.iterdir() if path.is_file() and not path.is_symlink()}
        return {
            name: one
            for name, one in kept.items()
            if name in here
            and here[name].stat().st_size == one.file.size_bytes
            and file_digest(here[name]) == one.file.digest
        }

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.name in self._kept:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, durably."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.add(name, len(content), "sha256:" + hashlib.sha256(content).hexdigest())

    def copy(self, folder: Folder, source: str, name: str) -> None:
        """Write a durable copy of a file of another folder, a piece at a time."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        hashed, size_bytes = hashlib.sha256(), 0
        with folder.path(source).open("rb") as original, target.open("xb") as file:
            while piece := original.read(_PIECE_BYTES):
                hashed.update(piece)
                size_bytes += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        self.add(name, size_bytes, "sha256:" + hashed.hexdigest())

    def publish(self) -> Sequence[ResultFile]:
        """Put the folder in its place; gives its files sorted by name."""
        (self.path / _LIST).unlink(missing_ok=True)
        _sync(self.path)
        self.path.replace(self._out)
        _sync(self._out.parent)
        self._is_published = True
        self._unlock()
        return tuple(sorted(self._files))


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the disk on which a path will lie."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
