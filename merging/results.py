"""A folder of results that appears whole under its name, or never; every file hashed as it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from adapterhub.merging.errors import PlanTooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapterhub.merging.folders import Folder


_PIECE_BYTES = 4 * 1024 * 1024


class ResultFile(NamedTuple):
    """One written file: path inside the folder, bytes, and "sha256:<hex>"."""

    name: str
    size_bytes: int
    digest: str


class ResultFolder:
    """Collects files beside `out` and renames them into place at `publish`; as a context manager throws them away else.

    out must not exist, or be an empty folder. size_bytes: what is known of the result's size. Raises FileExistsError
    when it holds anything, and PlanTooLarge where its disk has not that much room, or runs full later.
    """

    def __init__(self, out: Path, size_bytes: int = 0) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: already there; name a folder that is empty or does not exist")
        self._out, self._size_bytes = out, size_bytes
        if free_bytes(out) < size_bytes:
            raise self._too_large()
        self.path = out.with_name(f".{out.name}.{secrets.token_hex(6)}.partial")
        self._files: list[ResultFile] = []
        self._is_published = False

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._is_published:
            return
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        refusal = self._too_large() if is_full else None  # while what was written still counts
        shutil.rmtree(self.path, ignore_errors=True)
        if refusal is not None:
            raise refusal from error

    def _too_large(self) -> PlanTooLarge:
        return PlanTooLarge(
            f"{self._out}: the result takes {self._size_bytes} bytes and its disk has {free_bytes(self._out)} free; "
            "make room, or name a folder on another disk. Nothing was changed"
        )

    def add(self, name: str, size_bytes: int, digest: str) -> None:
        """Count in a file that its writer has made durable at `path / name`."""
        self._files.append(ResultFile(name, size_bytes, digest))

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
        _sync(self.path)
        self.path.replace(self._out)
        _sync(self._out.parent)
        self._is_published = True
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
