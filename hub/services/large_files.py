"""The large files of a repository, in every commit, by their sha256."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlmodel import Session, col

from adapterhub.hub.db.queries import chunks
from adapterhub.hub.db.tables import BlobOwner, Commit, GitBlob, GitTreeEntry, Repository


@dataclass(frozen=True)
class LargeFile:
    """One large file. path: where one commit has it, "" where none does. pushed_at: when it last came or was linked."""

    digest: str
    size_bytes: int
    path: str
    pushed_at: datetime


def listing(session: Session, repo: Repository, *, after: str = "", limit: int) -> list[LargeFile]:
    """Large files by digest, those after `after`; the caller asked `access` before."""
    rows = session.execute(
        select(col(GitBlob.digest), func.min(col(GitBlob.oid)), col(GitBlob.size_bytes), col(BlobOwner.linked_at))
        .join(
            BlobOwner,
            (col(BlobOwner.repository_id) == col(GitBlob.repository_id))
            & (col(BlobOwner.digest) == col(GitBlob.digest)),
        )
        .where(col(GitBlob.repository_id) == repo.id, col(GitBlob.is_lfs), col(GitBlob.digest) > after)
        .group_by(col(GitBlob.digest), col(GitBlob.size_bytes), col(BlobOwner.linked_at))
        .order_by(col(GitBlob.digest))
        .limit(limit)
    ).all()
    paths = _paths(session, repo, [oid for _, oid, _, _ in rows])
    return [LargeFile(digest, size, paths.get(oid, ""), at) for digest, oid, size, at in rows]


def _paths(session: Session, repo: Repository, oids: Iterable[str]) -> dict[str, str]:
    """A path of each object in some commit: looked up from the file to the folders that hold it, one query a level."""
    found: dict[str, str] = {}
    pending = {(oid, ""): oid for oid in oids}  # (object, path below it) -> the file asked for
    while pending:
        parents = _holders(session, repo, {at for at, _ in pending})
        roots = _roots(session, repo, {tree for lines in parents.values() for tree, _ in lines})
        above: dict[tuple[str, str], str] = {}
        for (at, below), asked in pending.items():
            for tree, name in parents.get(at, ()):
                path = f"{name}/{below}" if below else name
                if tree in roots:
                    found.setdefault(asked, path)
                above[tree, path] = asked
        pending = {key: asked for key, asked in above.items() if asked not in found}
    return found


def _holders(session: Session, repo: Repository, oids: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """For each object the trees that hold it, with the name it has there."""
    found: dict[str, list[tuple[str, str]]] = {}
    for some in chunks(oids):
        lines = session.scalars(
            select(GitTreeEntry).where(col(GitTreeEntry.repository_id) == repo.id, col(GitTreeEntry.oid).in_(some))
        )
        for line in lines:
            found.setdefault(line.oid, []).append((line.tree_oid, line.name))
    return found


def _roots(session: Session, repo: Repository, trees: Iterable[str]) -> set[str]:
    """Those of the trees that are a commit's own."""
    found: set[str] = set()
    for some in chunks(trees):
        rows = select(col(Commit.tree_oid)).where(col(Commit.repository_id) == repo.id, col(Commit.tree_oid).in_(some))
        found.update(session.scalars(rows))
    return found
