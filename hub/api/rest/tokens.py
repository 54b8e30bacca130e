"""Your own tokens."""

from typing import Any

from fastapi import APIRouter
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import CreatedToken, NewToken, TokenList, TokenView
from adapterhub.hub.context import Hub
from adapterhub.hub.services import tokens
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.tokens import OwnToken, Reach

router = APIRouter(prefix="/api/tokens", tags=["tokens"])


@router.post("", status_code=201)
async def create_token(new: NewToken, hub: HubDep, caller: CallerDep) -> CreatedToken:
    """Make a token of yours; its text is shown this once. Takes a token that may write everything."""
    scoped: dict[str, list[str]] = {}
    for one in new.scoped:
        scoped.setdefault(one.name, []).extend(one.permissions)
    reach = Reach(scoped, new.everywhere, new.reads_gated)

    def work(session: Session) -> CreatedToken:
        made, text = tokens.create(session, caller, new.name, new.role, reach, days=new.days)
        return CreatedToken(**_fields(made), token=text)

    return await threads.run(hub.db.transact, work)


@router.get("")
async def list_tokens(hub: HubDep, caller: CallerDep) -> TokenList:
    """List your tokens that have not ended, newest first."""
    return await threads.run(_tokens, hub, caller)


@router.delete("/{name_or_id}", status_code=204)
async def revoke_token(name_or_id: str, hub: HubDep, caller: CallerDep) -> None:
    """End one of your tokens."""
    await threads.run(hub.db.transact, lambda session: tokens.revoke(session, caller, name_or_id))


def _tokens(hub: Hub, caller: Caller) -> TokenList:
    with hub.db.read() as session:
        return TokenList(items=[TokenView(**_fields(one)) for one in tokens.list_own(session, caller)])


def _fields(one: OwnToken) -> dict[str, Any]:
    row = one.token
    return {
        "id": row.id,
        "name": row.name,
        "role": row.role,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "scoped": [{"name": s.name, "type": s.kind, "permissions": list(s.permissions)} for s in one.scoped],
        "everywhere": list(one.everywhere),
        "reads_gated": row.reads_gated,
    }
