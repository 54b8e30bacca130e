"""From the names in a URL to the repository, commit and file they mean, as this caller may see them."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends
from sqlmodel import Session

from adapterhub.hub.api import mirrored, threads
from adapterhub.hub.api.errors import RepoMoved
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import refs, repos
from adapterhub.hub.services.access import Caller

T = TypeVar("T")


RepoId = Annotated[str, Depends(mirrored.repo_id)]
"""The repository that a route's `{namespace}/{name}` names."""


def find(session: Session, caller: Caller, repo_id: str) -> Repository:
    """The repository of exactly that name. Raises RepoNotFound, and RepoMoved for an old name or another spelling."""
    repo = repos.find(session, caller, repo_id)
    if repo.full_name != repo_id:
        raise RepoMoved(repo_id, repo.full_name)
    return repo


def find_commit(session: Session, caller: Caller, repo_id: str, revision: str | None) -> tuple[Repository, str]:
    """The repository and the commit that `revision` means there. Raises as `find`, and RevisionNotFound."""
    repo = find(session, caller, repo_id)
    return repo, refs.resolve(session, repo, revision)


async def read(hub: Hub, work: Callable[[Session], T]) -> T:
    """What `work` gives back, called in a thread with a session that only reads."""

    def in_session() -> T:
        with hub.db.read() as session:
            return work(session)

    return await threads.run(in_session)


async def write(hub: Hub, work: Callable[[Session], T]) -> T:
    """What `work` gives back, called in a thread in one write transaction, and again while the database is busy."""
    return await threads.run(hub.db.transact, work)
