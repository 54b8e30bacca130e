"""From the names in a URL to the repository, commit and file they mean, as this caller may see them."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.errors import RepoMoved
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import mirror, refs, repos
from adapterhub.hub.services.access import Caller

T = TypeVar("T")


async def _repo_id(request: Request, hub: HubDep, caller: CallerDep, namespace: str, name: str) -> str:
    """The name in full; where it is read and another hub is mirrored, what is there has been brought here by then."""
    repo_id = f"{namespace}/{name}"
    is_read = request.method in ("GET", "HEAD") or "/paths-info/" in request.url.path
    if is_read and hub.settings.mirror_url is not None:
        async with threads.turns("mirror", mirror.LOOKS_AT_ONCE):
            warning = await threads.run(mirror.ensure, hub, caller, repo_id, request.path_params.get("revision"))
        if warning is not None:
            request.state.warning = warning
    return repo_id


RepoId = Annotated[str, Depends(_repo_id)]
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
