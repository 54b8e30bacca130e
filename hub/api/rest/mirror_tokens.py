"""Tokens by which organisations read at the mirrored hub: set, listed without their text, removed."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, SecretStr
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.services import mirror_tokens
from adapterhub.hub.services.access import Caller

router = APIRouter(prefix="/api", tags=["administration"])


class MirrorTokenView(BaseModel):
    """That an organisation has a token, which is never shown. source: the hub that it is for, and sent to alone."""

    organisation: str
    source: str
    created_at: datetime


class MirrorTokenList(BaseModel):
    items: list[MirrorTokenView]


class NewMirrorToken(BaseModel):
    """A token of the mirrored hub."""

    token: SecretStr


@router.get("/mirror-tokens")
async def list_mirror_tokens(hub: HubDep, caller: CallerDep) -> MirrorTokenList:
    """List your organisations that have a token for the mirrored hub. For administrators of each."""
    return await threads.run(_listed, hub, caller)


@router.put("/organisations/{organisation}/mirror-token", status_code=204)
async def set_mirror_token(organisation: str, new: NewMirrorToken, hub: HubDep, caller: CallerDep) -> None:
    """Keep an organisation's token for the mirrored hub, in place of its former one. For its administrators."""

    def work(session: Session) -> None:
        mirror_tokens.put(session, hub, caller, organisation, new.token.get_secret_value())

    await threads.run(hub.db.transact, work)


@router.delete("/organisations/{organisation}/mirror-token", status_code=204)
async def remove_mirror_token(organisation: str, hub: HubDep, caller: CallerDep) -> None:
    """Forget an organisation's token for the mirrored hub, and what it opened. For its administrators."""
    await threads.run(hub.db.transact, lambda session: mirror_tokens.remove(session, hub, caller, organisation))


def _listed(hub: Hub, caller: Caller) -> MirrorTokenList:
    with hub.db.read() as session:
        found = mirror_tokens.listing(session, caller)
    return MirrorTokenList(items=[MirrorTokenView(**vars(one)) for one in found])
