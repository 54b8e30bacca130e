"""Which commit last changed a file or folder, for many paths at once.

History is walked along first parents, a window of commits at a time; within one, each level of folders is one query.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from sqlalchemy import select
from sqlmodel import Session, col

from adapterhub.hub.db.queries import chunks
from adapterhub.hub.db.tables import Commit, Repository
from adapterhub.hub.services import trees

WINDOW = 256
"""Commits compared at once."""


def last_commits(session: Session, repo: Repository, commit: str, paths: Iterable[str]) -> dict[str, Commit]:
    """For each path that exists at `commit`, the newest commit up to there that changed it, or anything in it.

    A change that came through a merge is the merge's. The number of queries grows with the commits walked and the depth
    of the paths, not with the number of paths.
    """
    pending = set(paths)
    changed: dict[str, str] = {}
    chain = _chain(session, repo, commit)
    while chain and pending:
        window = chain[: WINDOW + 1]  # the last one is only compared with
        objects = trees.objects_at(session, repo, [root for _, root in window], pending)
        for index, (newer, older) in enumerate(pairwise([*objects, {}] if len(window) == len(chain) else objects)):
            for path in [path for path in pending if path in newer and newer[path] != older.get(path)]:
                changed[path] = window[index][0]
                pending.discard(path)
        pending &= set(objects[-1])
        chain = chain[WINDOW:] if len(window) < len(chain) else []
    return _rows(session, repo, changed)


def _chain(session: Session, repo: Repository, commit: str) -> list[tuple[str, str]]:
    """Commit and tree, from `commit` back along first parents."""
    columns = col(Commit.oid), col(Commit.tree_oid), col(Commit.parents)
    rows = session.execute(select(*columns).where(col(Commit.repository_id) == repo.id))
    known = {oid: (tree, parents) for oid, tree, parents in rows}
    found, at = [], commit
    while at in known:
        tree, parents = known[at]
        found.append((at, tree))
        at = parents[0] if parents else ""
    return found


def _rows(session: Session, repo: Repository, changed: Mapping[str, str]) -> dict[str, Commit]:
    rows: dict[str, Commit] = {}
    for some in chunks(sorted(set(changed.values()))):
        found = session.scalars(select(Commit).where(col(Commit.repository_id) == repo.id, col(Commit.oid).in_(some)))
        rows |= {row.oid: row for row in found}
    return {path: rows[oid] for path, oid in changed.items()}
