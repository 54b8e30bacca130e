"""The patches of one repository, which may hold thousands in sub-folders: searched, a page at a time."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Patch, Repository
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import describe, refs, repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.names import is_storable

MAX_LIMIT = 1000
QUERY_CHARACTERS = 200
MATCHES = 3
"""Most folders that a line of the catalogue names."""


def listing(
    hub: Hub,
    caller: Caller,
    repo_id: str,
    revision: str | None = None,
    *,
    query: str = "",
    kind: str = "",
    limit: int = 100,
    after: str = "",
) -> dict[str, Any]:
    """{"items": patches in the order of their folders, "total", "after": where the next page begins, "" on the last}.

    query: words, each of which must occur in the folder's path, whatever its case. limit: clamped to 1 to 1000.
    after: the last path of the page before. Raises RepoNotFound, RevisionNotFound, InvalidRequest for a long query.
    """
    if len(query) > QUERY_CHARACTERS:
        raise InvalidRequest(f"search: {len(query)} characters; at most {QUERY_CHARACTERS} are searched for")
    limit = max(1, min(limit, MAX_LIMIT))
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        commit = refs.resolve(session, repo, revision)
        if not all(map(is_storable, (query, kind, after))):
            return {"items": [], "total": 0, "after": ""}
        here = col(Patch.repository_id) == repo.id, col(Patch.commit_oid) == commit
        wanted = and_(*here, *_in_path(query.split()), *([col(Patch.kind) == kind] if kind else []))
        total = session.scalar(select(func.count()).select_from(Patch).where(wanted)) or 0
        beyond = [col(Patch.path) > after] if after else []
        found = select(Patch).where(wanted, *beyond).order_by(col(Patch.path)).limit(limit + 1)
        rows = session.scalars(found).all()
        following = rows[limit - 1].path if len(rows) > limit else ""
        return {"items": describe.patches_json(session, caller, rows[:limit]), "total": total, "after": following}


def matches(session: Session, repo: Repository, commit: str, query: str) -> list[str]:
    """The first folders, up to three, whose paths have the words of the query that the repository's name lacks.

    Nothing for a query whose words are all in the name.
    """
    words = [word for word in query.casefold().split() if word not in repo.full_name.casefold()]
    if not words or not is_storable(query):
        return []
    here = col(Patch.repository_id) == repo.id, col(Patch.commit_oid) == commit, col(Patch.path) != ""
    paths = select(col(Patch.path)).where(*here, *_in_path(words)).order_by(col(Patch.path)).limit(MATCHES)
    return list(session.scalars(paths))


def _in_path(words: Sequence[str]) -> list[ColumnElement[bool]]:
    return [func.lower(col(Patch.path)).contains(word.lower(), autoescape=True) for word in words]
