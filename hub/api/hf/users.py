"""Who am I. Source: huggingface_hub/hf_api.py whoami."""

from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.hf.addressing import read
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.services import accounts

router = APIRouter(route_class=RawRoute)


@router.get("/api/whoami-v2")
async def whoami(hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """The caller's name, organisations and token, as `hf auth whoami` prints them. Raises NotAuthenticated."""
    identity = await read(hub, lambda session: accounts.whoami(session, caller))
    account, token = identity.account, identity.token
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
        "auth": {
            "type": "access_token",
            "accessToken": {
                "displayName": token.name if token else "",
                "role": caller.token_role,
                "createdAt": token.created_at if token else None,
            },
        },
    }
