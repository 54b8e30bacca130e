"""A folder of results that appears whole under its name, or never; every file hashed as it is written."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

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

    out must not exist, or be an empty folder. Raises FileExistsError when it holds anything.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: already there; name a folder that is empty or does not exist")
        self._out = out
        self.path = out.with_name(f".{out.name}.{secrets.token_hex(6)}.partial")
        self._files: list[ResultFile] = []
        self._is_published = False

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._is_published:
            shutil.rmtree(self.path, ignore_errors=True)

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


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
