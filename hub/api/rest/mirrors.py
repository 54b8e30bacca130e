"""Repositories that were brought from another hub, for administrators."""

from fastapi import APIRouter
from pydantic import BaseModel
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.services import mirror_care
from adapterhub.hub.services.access import Caller

router = APIRouter(prefix="/api/admin/mirrors", tags=["administration"])


class MirrorView(BaseModel):
    """A mirror. size_bytes: of large files whose bytes are here; problem: why its source did not answer, or "".

    organisations: to whom alone it is shown; null where everybody is.
    """

    name: str
    source: str
    is_pinned: bool
    size_bytes: int
    problem: str
    organisations: list[str] | None


class MirrorList(BaseModel):
    items: list[MirrorView]


class Pinning(BaseModel):
    """Whether a mirror keeps its bytes whatever the quota."""

    pinned: bool


class Evicted(BaseModel):
    """How many files were let go of."""

    files: int


@router.get("")
async def list_mirrors(hub: HubDep, caller: CallerDep) -> MirrorList:
    """List every repository that was brought from another hub. For administrators."""
    return await threads.run(_listed, hub, caller)


@router.put("/{namespace}/{name}", status_code=204)
async def pin_mirror(namespace: str, name: str, wanted: Pinning, hub: HubDep, caller: CallerDep) -> None:
    """Keep a mirror's bytes whatever the quota, or no longer. For administrators."""

    def work(session: Session) -> None:
        mirror_care.pin(session, caller, f"{namespace}/{name}", pinned=wanted.pinned)

    await threads.run(hub.db.transact, work)


@router.post("/{namespace}/{name}/refresh", status_code=204)
async def refresh_mirror(namespace: str, name: str, hub: HubDep, caller: CallerDep) -> None:
    """Have a mirror's branches and tags looked up, or a name asked for again, at its next read. For administrators."""
    await threads.run(hub.db.transact, lambda session: mirror_care.refresh(session, hub, caller, f"{namespace}/{name}"))


@router.post("/{namespace}/{name}/evict")
async def evict_mirror(namespace: str, name: str, hub: HubDep, caller: CallerDep) -> Evicted:
    """Let go of a mirror's large files; they come again when they are asked for. For administrators."""
    return Evicted(files=await threads.run(mirror_care.evict, hub, caller, f"{namespace}/{name}"))


def _listed(hub: Hub, caller: Caller) -> MirrorList:
    with hub.db.read() as session:
        found = mirror_care.listing(session, caller)
    return MirrorList(items=[MirrorView.model_validate(one, from_attributes=True) for one in found])
