"""What `adapterhub export` writes and `adapterhub import folder` reads again: a plain tree and the list of it.

adapterhub-export.json                    repositories with refs, commits, digests, visibility, lineage
README.md                                 what this is, in plain words
NAMESPACE/NAME/...                        files of the default branch
NAMESPACE/NAME/.revisions/heads/REF/...   files of another branch, and under tags/ of a tag; "/" in REF is %2F
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adapterhub.cli.errors import Declined
from adapterhub.cli.source import PIECE_BYTES, Item, Skipped, SourceCommit, SourceFailed, SourceFile, SourceRef
from adapterhub.merging.folders import is_inside

MANIFEST = "adapterhub-export.json"
README = "README.md"
REVISIONS = ".revisions"
DEFAULT_BRANCH = "main"
FORMAT, VERSION = "adapterhub-export", 1


@dataclass(frozen=True)
class ExportedFile:
    """One file as it lies in the tree."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportedCommit:
    """One commit of a history; its files lie in the tree only where a ref points at it."""

    id: str
    title: str
    message: str
    author: str
    date: str


@dataclass(frozen=True)
class ExportedRef:
    """A branch or tag. folder: where its files lie, from the root of the export; commits: that lead to it, in order."""

    name: str
    is_tag: bool
    commit: str
    folder: str
    commits: Sequence[str]
    files: Sequence[ExportedFile]


@dataclass(frozen=True)
class ExportedRepository:
    """One repository, as it was."""

    id: str
    is_private: bool
    gated: str | None
    kind: str
    refs: Sequence[ExportedRef]
    commits: Sequence[ExportedCommit]
    lineage: Any = field(default_factory=dict)


def folder_of(repo_id: str, ref: str, *, is_tag: bool, is_default: bool) -> str:
    """Where the files of a ref lie in the tree."""
    if is_default:
        return repo_id
    return f"{repo_id}/{REVISIONS}/{'tags' if is_tag else 'heads'}/{quote(ref, safe='')}"


def write_list(dest: Path, hub: str, repositories: Sequence[ExportedRepository]) -> None:
    """Write the list of an export, whole or not at all."""
    told = {"format": FORMAT, "version": VERSION, "hub": hub, "repositories": [asdict(one) for one in repositories]}
    replace_file(dest / README, GUIDE.encode())
    replace_file(dest / MANIFEST, json.dumps(told, indent=1, ensure_ascii=False).encode())


GUIDE = """# An export of adapterhub

Every repository is a folder `NAMESPACE/NAME` with the files of its branch `main`, as they were: point any loader at it.
Other branches and tags lie below it, in `.revisions/heads/NAME` and `.revisions/tags/NAME` (a "/" in a name is written
`%2F`). A file that is the same there as on `main` may be a hard link to it: copy it before you change it.

`adapterhub-export.json` lists the repositories: who could see them, what they were made from, each branch and tag with
its commit and the history that leads to it, and each file with its size and SHA-256.

Check that nothing was lost with `adapterhub export --check THIS_FOLDER`, or with any tool that computes SHA-256.
Take it into a hub again with `adapterhub import folder THIS_FOLDER`.
"""
"""What lies beside the list, for a person who finds the folder."""


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".adapterhub-", delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def read_list(dest: Path) -> list[ExportedRepository]:
    """The repositories of an export. Raises Declined for a list that is none, or that leads out of its folder."""
    path = dest / MANIFEST
    try:
        told = json.loads(path.read_bytes())
        if (told["format"], told["version"]) != (FORMAT, VERSION):
            raise Declined(f"{path}: format {told['format']!r} version {told['version']!r} is not known here")
        found = [_repository(one) for one in told["repositories"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Declined(f"{path}: not the list of an export: {error}") from error
    for ref in (ref for one in found for ref in one.refs):
        for name in (ref.folder, *(file.path for file in ref.files)):
            if not is_inside(name):
                raise Declined(f"{path}: {name!r} leads out of the export")
    return found


def _repository(told: dict[str, Any]) -> ExportedRepository:
    refs = [ExportedRef(**{**ref, "files": [ExportedFile(**file) for file in ref["files"]]}) for ref in told["refs"]]
    return ExportedRepository(**{**told, "refs": refs, "commits": [ExportedCommit(**one) for one in told["commits"]]})


class ExportedSource:
    """The repositories of an export: of each history those commits whose files are in it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._repositories = {f"export:{one.id}": one for one in read_list(root)}

    def items(self) -> Iterator[Item | Skipped]:
        for origin, one in self._repositories.items():
            namespace, _, name = one.id.partition("/")
            yield Item(name, origin, namespace, one.is_private, one.gated)

    def refs(self, item: Item) -> Sequence[SourceRef]:
        one = self._repositories[item.origin]
        commits = {commit.id: commit for commit in one.commits}
        kept = {ref.commit for ref in one.refs}
        found = []
        for ref in sorted(one.refs, key=lambda ref: ref.is_tag):
            chosen = (commits[oid] for oid in ref.commits if oid in kept)
            here = [SourceCommit(c.id, c.title, c.message, c.author, c.date) for c in chosen]
            found.append(SourceRef(ref.name, here, ref.is_tag))
        return found

    def files(self, item: Item, commit: SourceCommit) -> Sequence[SourceFile]:
        ref = self._ref(item, commit)
        return [SourceFile(file.path, file.size_bytes, f"sha256:{file.sha256}") for file in ref.files]

    def read(
        self, item: Item, commit: SourceCommit, file: SourceFile, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        path = (self._root / self._ref(item, commit).folder / file.path).resolve()
        if not path.is_relative_to(self._root):
            raise SourceFailed(f"{path}: lies outside the export; nothing is read through such a link")
        try:
            with path.open("rb") as opened:
                opened.seek(start)
                left = (file.size_bytes if end is None else end) - start
                while left > 0 and (piece := opened.read(min(PIECE_BYTES, left))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise SourceFailed(f"{path}: cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _ref(self, item: Item, commit: SourceCommit) -> ExportedRef:
        return next(ref for ref in self._repositories[item.origin].refs if ref.commit == commit.key)
