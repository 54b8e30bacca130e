"""Repositories of the server written into a plain tree that needs nothing of ours to be read; see `exported`.

Every file is compared with its SHA-256 or git id. What lies there already with the right bytes is kept, so a run that
was cut off goes on. A file of another revision that is as in the default branch
is a hard link to the one there, where the disk has links.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adapterhub.cli.client import Client, repo_path
from adapterhub.cli.errors import CliError, Declined
from adapterhub.cli.exported import (
    DEFAULT_BRANCH,
    REVISIONS,
    ExportedCommit,
    ExportedFile,
    ExportedRef,
    ExportedRepository,
    folder_of,
    read_list,
)
from adapterhub.cli.source import PIECE_BYTES, file_names
from adapterhub.merging.folders import is_inside

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import HfApi, RepoFile

PARTIAL = ".adapterhub-partial"
"""The one file that is on its way; a run that was killed leaves at most this, and the next one replaces it."""

Seen = Callable[[str, int], None]


@dataclass
class Saved:
    """What was done for one repository."""

    repo: str
    state: str = "exported"
    refs: list[str] = field(default_factory=list)
    files: int = 0
    received_bytes: int = 0
    kept_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def save(client: Client, repo_id: str, dest: Path, saved: Saved, seen: Seen) -> ExportedRepository:
    """The repository as the list of the export tells it, once all its refs lie in the tree.

    Raises CliError and OSError where that broke off; the files that are there by then are sound.
    """
    view = client.get(repo_path(repo_id))
    with client.files() as api, client.http() as http:
        info = api.model_info(repo_id)
        told = api.list_repo_refs(repo_id)
        named = [(ref.name, ref.target_commit, False) for ref in told.branches]
        named += [(ref.name, ref.target_commit, True) for ref in told.tags]
        named.sort(key=lambda one: (one[2], one[0] != DEFAULT_BRANCH, one[0]))
        commits: dict[str, ExportedCommit] = {}
        refs = []
        for name, oid, is_tag in named:
            saved.refs.append(name)
            folder = folder_of(repo_id, name, is_tag=is_tag, is_default=not is_tag and name == DEFAULT_BRANCH)
            history = _history(api, repo_id, oid)
            commits |= {commit.id: commit for commit in history}
            writer = _Writer(client, http, repo_id, oid, dest, saved, seen)
            files = [writer.write(folder, file) for file in _files(api, repo_id, oid)]
            refs.append(ExportedRef(name, is_tag, oid, folder, [commit.id for commit in history], files))
    is_private, gated = bool(info.private), info.gated or None
    return ExportedRepository(repo_id, is_private, gated, view["kind"], refs, list(commits.values()), view["lineage"])


def clear(dest: Path, before: ExportedRepository, after: ExportedRepository) -> None:
    """Remove the files that an earlier export of the repository wrote and that it does not have any more."""
    paths = [{f"{ref.folder}/{file.path}" for ref in one.refs for file in ref.files} for one in (before, after)]
    for path in sorted(paths[0] - paths[1]):
        if (dest / path).parent.resolve().is_relative_to(dest.resolve()):
            (dest / path).unlink(missing_ok=True)


def check(dest: Path, seen: Seen) -> Iterator[Saved]:
    """What is wrong with each repository of an export, found without a server. Raises Declined where there is none."""
    for one in read_list(dest):
        saved = Saved(one.id, "sound", [ref.name for ref in one.refs])
        for ref in one.refs:
            for file in ref.files:
                saved.files += 1
                path = dest / ref.folder / file.path
                problem = _problem(path, file)
                saved.kept_bytes += file.size_bytes
                seen(f"{ref.folder}/{file.path}", file.size_bytes)
                if problem:
                    saved.problems.append(f"{ref.folder}/{file.path}: {problem}")
        if saved.problems:
            saved.state = "broken"
        yield saved


class _Writer:
    """Writes the files of one ref."""

    def __init__(
        self, client: Client, http: httpx.Client, repo_id: str, commit: str, dest: Path, saved: Saved, seen: Seen
    ) -> None:
        self.client, self.http, self.repo_id, self.commit = client, http, repo_id, commit
        self.dest, self.saved, self.seen = dest.resolve(), saved, seen

    def write(self, folder: str, file: RepoFile) -> ExportedFile:
        """The file as it lies in `folder`. Raises Declined for a name that would leave it, or hide a revision."""
        if not is_inside(file.path) or file.path.split("/")[0] == REVISIONS:
            raise Declined(
                f"{self.repo_id}: {file.path!r} cannot lie in an export, which keeps revisions under that name"
            )
        path = self.dest / folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(self.dest) or path.is_symlink():
            raise Declined(f"{path}: lies behind a link; nothing is written through one")
        self.saved.files += 1
        digest = _digest_of(path, file) or self._linked(path, file)
        if digest is not None:
            self.saved.kept_bytes += file.size
        else:
            digest = self._fetch(path, file)
            self.saved.received_bytes += file.size
        self.seen(file.path, file.size)
        return ExportedFile(file.path, file.size, digest.removeprefix("sha256:"))

    def _linked(self, path: Path, file: RepoFile) -> str | None:
        """The digest once the file is a link to one of the same content, in the default branch's folder."""
        twin = self.dest / self.repo_id / file.path
        digest = _digest_of(twin, file) if twin != path else None
        if digest is None:
            return None
        try:
            path.unlink(missing_ok=True)
            os.link(twin, path)
        except OSError:
            return None  # a disk without links gets a file of its own
        return digest

    def _fetch(self, path: Path, file: RepoFile) -> str:
        """The digest of a file that was received whole and put in its place."""
        url = f"/{quote(self.repo_id)}/resolve/{self.commit}/{quote(file.path)}"
        part = self.dest / PARTIAL
        part.unlink(missing_ok=True)
        with self.http.stream("GET", url) as response, part.open("xb") as opened:
            if response.is_error:
                response.read()
                raise self.client.refusal(response)
            for piece in response.iter_bytes(PIECE_BYTES):
                opened.write(piece)
        digest = _digest_of(part, file)
        if digest is None:
            raise CliError(f"{self.repo_id}/{file.path}: other bytes arrived than were announced; run it again")
        part.replace(path)
        return digest


def _history(api: HfApi, repo_id: str, oid: str) -> list[ExportedCommit]:
    """The commits that lead to `oid`, oldest first."""
    return [
        ExportedCommit(one.commit_id, one.title, one.message, ", ".join(one.authors), one.created_at.isoformat())
        for one in reversed(api.list_repo_commits(repo_id, revision=oid))
    ]


def _files(api: HfApi, repo_id: str, oid: str) -> list[RepoFile]:
    tree: Iterator[Any] = iter(api.list_repo_tree(repo_id, recursive=True, revision=oid))
    return [entry for entry in tree if hasattr(entry, "blob_id")]


def _digest_of(path: Path, file: RepoFile) -> str | None:
    """The SHA-256 of what lies at `path`, when that is the content that the server tells of."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return None
    with path.open("rb") as opened:
        digest, oid = file_names(iter(lambda: opened.read(PIECE_BYTES), b""), file.size)
    is_right = digest == f"sha256:{file.lfs.sha256}" if file.lfs else oid == file.blob_id
    return digest if is_right else None


def _problem(path: Path, file: ExportedFile) -> str | None:
    """What is wrong with a file of an export, None for a sound one."""
    if path.is_symlink():
        return "is a link"
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"has {size} bytes, not {file.size_bytes}"
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    return None if found == file.sha256 else f"its SHA-256 is {found}, not {file.sha256}"
