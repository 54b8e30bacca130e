"""What is imported from: items with their refs, commits and files, as every kind of source tells them.

One kind of source is one file in `sources/`. A source only reads; `intake` decides what of it travels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adapterhub.cli.errors import CliError

PIECE_BYTES = 1 << 20
"""Most bytes of a file that are in memory at once."""


@dataclass(frozen=True)
class SourceFile:
    """One file of one commit. digest: "sha256:<hex>" and oid: git's id of a file stored whole, where they are told.

    is_large: git holds a pointer to it there, and is to do so here; its digest is told.
    """

    path: str
    size_bytes: int
    digest: str | None = None
    oid: str | None = None
    is_large: bool = False


@dataclass(frozen=True)
class SourceCommit:
    """One state of an item's files. key: the source's own name for it, the same whenever it is asked."""

    key: str
    title: str
    body: str = ""
    author: str = ""
    at: str = ""


@dataclass(frozen=True)
class SourceRef:
    """A branch, or a tag, with the commits that lead to it along first parents, oldest first; at least one."""

    name: str
    commits: Sequence[SourceCommit]
    is_tag: bool = False


@dataclass(frozen=True)
class Skipped:
    """A folder or file that is not taken, and why. is_fault: it was to be taken, and something is wrong with it."""

    what: str
    reason: str
    is_fault: bool = False


@dataclass(frozen=True)
class Item:
    """What becomes one repository. origin: its name in the trailers of commits; namespace: as its source has it."""

    name: str
    origin: str
    namespace: str | None = None
    is_private: bool = False
    gated: str | None = None
    skipped: Sequence[Skipped] = ()


@dataclass(frozen=True)
class Wishes:
    """What the command was asked beside the place to import from."""

    upstream: str = "https://huggingface.co"
    upstream_token: str | None = None
    name_from: str = "path"
    follow_uris: bool = False


class Source(Protocol):
    """One place to import from. Every method raises CliError for a place that fails or refuses."""

    def items(self) -> Iterator[Item | Skipped]:
        """What becomes a repository each, and what is left out."""

    def refs(self, item: Item) -> Sequence[SourceRef]:
        """Its branches, the default one first, then its tags."""

    def files(self, item: Item, commit: SourceCommit) -> Sequence[SourceFile]:
        """Every file at that commit."""

    def read(
        self, item: Item, commit: SourceCommit, file: SourceFile, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        """Bytes [start, end) of a file in pieces; end None means its end."""

    def close(self) -> None:
        """Give back connections; the source is not asked afterwards."""


@dataclass(frozen=True)
class SourceKind:
    """A kind of source. name: how it is written before the colon; open: the place that stands after it."""

    name: str
    title: str
    example: str
    open: Callable[[str, Wishes], Source]


class SourceFailed(CliError):
    """The source cannot be read: it does not answer, refuses, or sends what it did not announce."""


@dataclass
class CommitFolder:
    """The files of one commit as `merging.patches.inspect` takes them; only what it asks for is read."""

    source: Source
    item: Item
    commit: SourceCommit
    by_name: Mapping[str, SourceFile] = field(default_factory=dict)

    def names(self) -> Sequence[str]:
        return sorted(self.by_name)

    def size(self, name: str) -> int:
        return self._file(name).size_bytes

    def digest(self, name: str) -> str:
        return self._file(name).digest or file_names(self.read_all(name))[0]

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        file = self._file(name)
        stop = file.size_bytes if end is None else min(end, file.size_bytes)
        if start >= stop:
            return b""
        return b"".join(self.source.read(self.item, self.commit, file, start, stop))

    def read_all(self, name: str) -> Iterator[bytes]:
        """The file in pieces."""
        return self.source.read(self.item, self.commit, self._file(name))

    def path(self, name: str) -> Path:
        raise FileNotFoundError(f"{name}: lies in {self.item.origin}, not on this machine")

    def _file(self, name: str) -> SourceFile:
        if name not in self.by_name:
            raise FileNotFoundError(f"{name}: no such file in {self.item.origin}")
        return self.by_name[name]


def file_names(pieces: Iterator[bytes], size_bytes: int = 0) -> tuple[str, str]:
    """The two names of a content: "sha256:<hex>", and git's id of a blob of `size_bytes`."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    for piece in pieces:
        sha256.update(piece)
        sha1.update(piece)
    return f"sha256:{sha256.hexdigest()}", sha1.hexdigest()
