"""Asking for the files of a gated repository."""

from fastapi import APIRouter
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import AccessView, AskedAccess
from adapterhub.hub.context import Hub
from adapterhub.hub.services import gates, repos
from adapterhub.hub.services.access import Caller

router = APIRouter(prefix="/api/access-requests", tags=["gated repositories"])


@router.post("/{namespace}/{name}")
async def ask_access(
    namespace: str, name: str, hub: HubDep, caller: CallerDep, asked: AskedAccess | None = None
) -> AccessView:
    """Ask for the files of a gated repository; an automatic gate opens at once."""
    fields = asked.fields if asked else {}

    def work(session: Session) -> AccessView:
        request = gates.ask(session, caller, repos.find(session, caller, f"{namespace}/{name}"), fields)
        return AccessView(status=request.status, reason=request.reason)

    return await threads.run(hub.db.transact, work)


@router.get("/{namespace}/{name}")
async def show_access(namespace: str, name: str, hub: HubDep, caller: CallerDep) -> AccessView:
    """Show whether you may read the files of a repository: open, ask, pending or rejected."""
    return await threads.run(_shown, hub, caller, f"{namespace}/{name}")


def _shown(hub: Hub, caller: Caller, repo_id: str) -> AccessView:
    with hub.db.read() as session:
        return AccessView(status=gates.state(session, caller, repos.find(session, caller, repo_id)))
