"""A tree of plain files as a source: each folder in it that holds a patch or model is one item.

What a tree is, a folder of this machine or a prefix of a bucket, is the business of the file in `sources/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Protocol

from adapterhub.cli.errors import Missing, Misused
from adapterhub.cli.source import (
    CommitFolder,
    Item,
    Skipped,
    SourceCommit,
    SourceFile,
    SourceRef,
    Wishes,
)
from adapterhub.hub.errors import InvalidCard
from adapterhub.merging import patches
from adapterhub.merging.errors import MergingError
from adapterhub.merging.folders import json_digest

CARD = "README.md"
CARD_BYTES = 64 << 10
NAME_SOURCES = ("path", "card")

SECRETS = (
    *(".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "*.keystore", "*.jks", "id_rsa*", "id_dsa*"),
    *("id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd", "*.ovpn"),
    *("credentials", "credentials.json", "credentials.y*ml", "secrets.json", "secrets.y*ml", "secrets.toml"),
    *("client_secret*.json", "service_account*.json", "stored_tokens", "token.txt", ".aws", ".ssh", ".kube"),
)
"""Names, of files and folders, under which secrets are kept."""

LEFT_BEHIND = {".git": "git's own folder", ".hg": "Mercurial's own folder", ".svn": "Subversion's own folder"}


@dataclass(frozen=True)
class Leaf:
    """One file of a tree. stamp: changes when its content does."""

    path: str
    size_bytes: int
    stamp: str


class Tree(Protocol):
    """Plain files below one place. Both methods raise CliError for a place that fails or refuses."""

    @property
    def label(self) -> str:
        """How the place is written, without what is only true on this machine."""

    @property
    def name(self) -> str:
        """The place's own name, for what lies directly in it."""

    def leaves(self) -> tuple[Sequence[Leaf], Sequence[Skipped]]:
        """Its files by path, and what is not taken."""

    def read(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes [start, end) of a file in pieces."""


class TreeSource:
    """The items of a tree, each with one commit on main that is named by its files' sizes and stamps."""

    def __init__(self, tree: Tree, wishes: Wishes) -> None:
        if wishes.name_from not in NAME_SOURCES:
            raise Misused(f"--name-from {wishes.name_from}: write one of {', '.join(NAME_SOURCES)}")
        self._tree = tree
        self._name_from = wishes.name_from
        self._leaves: dict[str, dict[str, Leaf]] = {}

    def items(self) -> Iterator[Item | Skipped]:
        leaves, skipped = self._tree.leaves()
        if not leaves and not skipped:
            raise Missing(f"{self._tree.label}: nothing lies there")
        roots, broken = self._roots(leaves)
        for root in roots:
            inside = {leaf.path.removeprefix(root + "/" if root else ""): leaf for leaf in leaves if _is_in(leaf, root)}
            origin = f"{self._tree.label}/{root}".rstrip("/")
            self._leaves[origin] = inside
            yield Item(self._name(root, inside), origin, skipped=[one for one in skipped if _is_under(one.what, root)])
        yield from (one for one in skipped if not any(_is_under(one.what, root) for root in roots))
        yield from broken
        taken = [*roots, *(one.what for one in broken)]
        for what in _outermost_folders(leaf.path for leaf in leaves if not any(_is_in(leaf, root) for root in taken)):
            yield Skipped(what, "no patch or model of a known kind lies there")

    def refs(self, item: Item) -> Sequence[SourceRef]:
        leaves = self._leaves[item.origin]
        key = json_digest({path: [leaf.size_bytes, leaf.stamp] for path, leaf in leaves.items()})
        return [SourceRef("main", [SourceCommit(key, f"Import {item.origin}")])]

    def files(self, item: Item, commit: SourceCommit) -> Sequence[SourceFile]:
        return [SourceFile(path, leaf.size_bytes) for path, leaf in self._leaves[item.origin].items()]

    def read(
        self, item: Item, commit: SourceCommit, file: SourceFile, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        return self._tree.read(self._leaves[item.origin][file.path].path, start, end)

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _roots(self, leaves: Sequence[Leaf]) -> tuple[list[str], list[Skipped]]:
        """The outermost folders that hold something recognised, to which what lies deeper belongs; and broken ones."""
        everything = Item(self._tree.name, self._tree.label)
        self._leaves[everything.origin] = {leaf.path: leaf for leaf in leaves}
        folders: dict[str, dict[str, SourceFile]] = {}
        for leaf in leaves:
            folders.setdefault(leaf.path.rpartition("/")[0], {})[leaf.path] = SourceFile(leaf.path, leaf.size_bytes)
        found, broken = [], []
        for path, files in sorted(folders.items()):
            try:
                if patches.inspect(CommitFolder(self, everything, SourceCommit("", ""), files)):
                    found.append(path)
            except MergingError as error:
                broken.append(Skipped(path, str(error), is_fault=True))
        roots = _outermost(found)
        return roots, [one for one in broken if not any(_is_under(one.what, root) for root in roots)]

    def _name(self, root: str, inside: Mapping[str, Leaf]) -> str:
        if self._name_from == "card" and CARD in inside:
            found = _card_name(b"".join(self._tree.read(inside[CARD].path, 0, CARD_BYTES)))
            if found:
                return repo_name(found)
        return repo_name(root or self._tree.name)


def reason_to_skip(path: str) -> str | None:
    """Why a file of that path is left where it is, None for one that is taken."""
    for part in path.split("/"):
        if part in LEFT_BEHIND:
            return LEFT_BEHIND[part]
        if any(fnmatch(part.casefold(), pattern) for pattern in SECRETS):
            return "looks like a secret"
    return None


def repo_name(text: str) -> str:
    """`text` as the name of a repository: what no name may hold becomes "-"."""
    name = re.sub(r"[^A-Za-z0-9._]+|\.{2,}", "-", text).strip("-._")
    return name.removesuffix(".git")[:96] or "unnamed"


def _card_name(card: bytes) -> str:
    """The name that a card gives its model, "" for none."""
    from adapterhub.hub.services.cards import parse

    try:
        front = parse(card).data
    except InvalidCard:
        return ""
    index = front.get("model-index")
    listed = index[0].get("name") if isinstance(index, list) and index and isinstance(index[0], dict) else None
    found = (front.get("model_name"), front.get("name"), listed)
    return next((str(name) for name in found if isinstance(name, str) and name), "")


def _is_under(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(folder + "/")


def _is_in(leaf: Leaf, folder: str) -> bool:
    return not folder or leaf.path.startswith(folder + "/")


def _outermost(paths: Sequence[str]) -> list[str]:
    """Those of the folders that lie in none of the others."""
    return [path for path in paths if not any(other != path and _is_under(path, other) for other in paths)]


def _outermost_folders(files: Iterable[str]) -> list[str]:
    """The folders that hold those files, without those inside another of them; a file at the root stands for itself."""
    return _outermost(sorted({path.rpartition("/")[0] or path for path in files}))
