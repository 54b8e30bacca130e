"""Commits as git objects: writing one, and walking a branch's history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Commit, GitBlob, Repository, now
from adapterhub.hub.services import trees
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.git_objects import commit_oid
from adapterhub.hub.services.trees import Entry


@dataclass(frozen=True)
class Draft:
    """A commit that is fully known and not yet written. files and trees: those that its parent does not have."""

    row: Commit
    files: Sequence[Entry]
    trees: Mapping[str, Sequence[tuple[str, str, str]]]


def draft(
    repo: Repository,
    caller: Caller,
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
    parents: Sequence[str],
    message: str,
) -> Draft:
    """The commit by `caller`, now (whole seconds, as git counts), that turns the files `before` into `after`."""
    at = now().replace(microsecond=0)
    name = caller.name or "adapterhub"
    email = f"{name}@users.noreply.adapterhub"
    known, wanted = trees.build(before), trees.build(after)
    row = Commit(
        repository_id=repo.id,
        oid=commit_oid(wanted.root, parents, name, email, at, message),
        tree_oid=wanted.root,
        parents=list(parents),
        author_name=name,
        author_email=email,
        message=message,
        committed_at=at,
        author_id=caller.account_id,
    )
    files = [entry for path, entry in after.items() if before.get(path) != entry]
    return Draft(row, files, {oid: lines for oid, lines in wanted.objects.items() if oid not in known.objects})


def write(session: Session, commit: Draft) -> None:
    """Record the commit, its trees and its files in the transaction. Their blobs are recorded already."""
    repo_id = commit.row.repository_id
    rows = {e.oid: _blob_row(repo_id, e) for e in commit.files}
    insert_missing(session, GitBlob, rows.values())
    trees.write(session, repo_id, commit.trees)
    insert_missing(session, Commit, [commit.row.model_dump()])


def _blob_row(repo_id: str, entry: Entry) -> dict[str, Any]:
    same = {"oid": entry.oid, "digest": entry.digest, "size_bytes": entry.size_bytes, "is_lfs": entry.is_lfs}
    return {"repository_id": repo_id} | same


def history(session: Session, repo: Repository, oid: str, *, limit: int = 50, skip: int = 0) -> list[Commit]:
    """Commits from `oid` back along first parents, newest first, `skip` of them left out."""
    found: list[Commit] = []
    at: str | None = oid
    while at and len(found) < limit + skip:
        row = session.get_one(Commit, (repo.id, at))
        found.append(row)
        at = row.parents[0] if row.parents else None
    return found[skip:]
