"""Who am I. Source: huggingface_hub/hf_api.py whoami."""

from typing import Any

from fastapi import APIRouter
from sqlmodel import Session

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.hf.addressing import read
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import Token
from adapterhub.hub.services import accounts, tokens
from adapterhub.hub.services.access import FINE_GRAINED

router = APIRouter(route_class=RawRoute)


@router.get("/api/whoami-v2")
async def whoami(hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """The caller's name, organisations and token, as `hf auth whoami` prints them. Raises NotAuthenticated."""

    def work(session: Session) -> tuple[accounts.Identity, dict[str, Any]]:
        identity = accounts.whoami(session, caller)
        return identity, _access_token(session, identity.token)

    identity, token = await read(hub, work)
    account = identity.account
    return {
        "type": "user",
        "id": account.id,
        "name": account.name,
        "fullname": account.fullname or account.name,
        "email": account.email or None,
        "isPro": False,
        "orgs": [
            {"type": "org", "name": org.name, "fullname": org.fullname or org.name, "roleInOrg": org.role}
            for org in identity.organisations
        ],
        "auth": {"type": "access_token", "accessToken": token},
    }


def _access_token(session: Session, token: Token | None) -> dict[str, Any]:
    """The token as huggingface.co describes it: role read, write or fineGrained, the last with all that it reaches."""
    if token is None:
        return {}
    shape = {"displayName": token.name, "role": token.role, "createdAt": timestamp(token.created_at)}
    if token.role != FINE_GRAINED:
        return shape
    known = tokens.describe(session, token)
    scoped = [
        {"entity": {"_id": one.id, "type": one.kind, "name": one.name}, "permissions": list(one.permissions)}
        for one in known.scoped
    ]
    told = {"canReadGatedRepos": token.reads_gated, "global": list(known.everywhere), "scoped": scoped}
    return {**shape, "role": "fineGrained", "fineGrained": told}
