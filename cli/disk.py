"""A folder of this machine as a tree.

Links that lead out of the folder, links to folders, pipes, sockets and devices are neither followed nor opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapterhub.cli.source import PIECE_BYTES, Skipped, SourceFailed
from adapterhub.cli.trees import Leaf, reason_to_skip


class LocalTree:
    """The plain files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.name = self._root.name
        self.label = f"folder:{self.name}"

    def leaves(self) -> tuple[Sequence[Leaf], Sequence[Skipped]]:
        leaves: list[Leaf] = []
        skipped: list[Skipped] = []
        pending = [self._root]
        while pending:
            folder = pending.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                skipped.append(Skipped(self._relative(folder), f"cannot be read: {error.strerror}", is_fault=True))
                continue
            for entry in entries:
                path = Path(entry.path)
                reason = reason_to_skip(entry.name) or self._unfit(path)
                if reason:
                    skipped.append(Skipped(self._relative(path), reason))
                elif path.is_dir():
                    pending.append(path)
                else:
                    at = path.stat()
                    leaves.append(Leaf(self._relative(path), at.st_size, str(at.st_mtime_ns)))
        return sorted(leaves, key=lambda leaf: leaf.path), sorted(skipped, key=lambda one: one.what)

    def read(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        try:
            with (self._root / path).open("rb") as file:
                file.seek(start)
                left = (os.fstat(file.fileno()).st_size if end is None else end) - start
                while left > 0 and (piece := file.read(min(PIECE_BYTES, left))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise SourceFailed(f"{path}: cannot be read: {error.strerror}") from error

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _unfit(self, path: Path) -> str | None:
        """Why an entry is no plain file or folder of this tree; None when it is one."""
        if path.is_symlink():
            if not path.resolve().is_relative_to(self._root):
                return "a link that leads out of the folder"
            if not path.exists():
                return "a link that leads nowhere"
            if path.is_dir():
                return "a link to a folder"
        mode = path.stat().st_mode
        return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "no plain file"
