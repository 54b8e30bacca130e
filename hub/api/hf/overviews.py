"""Users and organisations as others see them. Source: huggingface_hub/hf_api.py get_user_overview and its like.

Nobody follows anybody here, and nothing but models is kept: those lists are empty and those numbers 0.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlmodel import Session

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import read
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import PAGE, Limit, Skip, one_page
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import Account
from adapterhub.hub.services import accounts, holdings, likes
from adapterhub.hub.services.access import require_signed_in
from adapterhub.hub.services.holdings import Holding

router = APIRouter(route_class=RawRoute)

_NOTHING = {"numDatasets": 0, "numSpaces": 0, "numPapers": 0, "numFollowers": 0}


def person_json(account: Account, public_url: str) -> dict[str, Any]:
    """A user in a list."""
    return {
        "_id": account.id,
        "user": account.name,
        "fullname": account.fullname or account.name,
        "avatarUrl": _avatar(public_url),
        "type": "user",
        "isPro": False,
    }


def _avatar(public_url: str) -> str:
    return f"{public_url}/static/adapterhub.svg"


@router.get("/api/users/{user}/overview")
async def user_overview(hub: HubDep, caller: CallerDep, public_url: PublicUrl, user: str) -> dict[str, Any]:
    """A user in numbers, of what the caller may see. Raises AccountNotFound."""

    def work(session: Session) -> dict[str, Any]:
        account = accounts.find_user(session, user)
        organisations = accounts.organisations_of(session, account.id)
        return {
            **person_json(account, public_url),
            **_NOTHING,
            "numModels": holdings.count_repositories(session, caller, account),
            "numLikes": likes.count_liked(session, caller, account),
            "numUpvotes": 0,
            "numFollowing": 0,
            "isFollowing": False,
            "createdAt": timestamp(account.created_at),
            "orgs": [
                {"name": one.name, "fullname": one.fullname or one.name, "avatarUrl": _avatar(public_url)}
                for one in organisations
            ],
        }

    return await read(hub, work)


@router.get("/api/organizations/{organisation}/overview")
async def organisation_overview(
    hub: HubDep, caller: CallerDep, public_url: PublicUrl, organisation: str
) -> dict[str, Any]:
    """An organisation in numbers, of what the caller may see. Raises AccountNotFound."""

    def work(session: Session) -> dict[str, Any]:
        account = accounts.find_organisation(session, organisation)
        return {
            "_id": account.id,
            "name": account.name,
            "fullname": account.fullname or account.name,
            "avatarUrl": _avatar(public_url),
            "isVerified": False,
            "isFollowing": False,
            **_NOTHING,
            "numUsers": len(accounts.members(session, organisation)),
            "numModels": holdings.count_repositories(session, caller, account),
        }

    return await read(hub, work)


@router.get("/api/organizations/{organisation}/members")
async def list_members(
    request: Request,
    response: Response,
    hub: HubDep,
    public_url: PublicUrl,
    organisation: str,
    skip: Skip = 0,
    limit: Limit = PAGE,
) -> list[dict[str, Any]]:
    """Who belongs to an organisation, by name; roles are told to its members only, elsewhere."""
    found = [account for account, _ in await read(hub, lambda session: accounts.members(session, organisation))]
    shown = one_page(request, response, public_url, found[skip:], skip=skip, limit=limit)
    return [person_json(account, public_url) for account in shown]


@router.get("/api/users/{user}/followers")
@router.get("/api/users/{user}/following")
async def list_follows(hub: HubDep, user: str) -> list[dict[str, Any]]:
    """Nobody. Raises AccountNotFound."""
    await read(hub, lambda session: accounts.find_user(session, user))
    return []


@router.get("/api/organizations/{organisation}/followers")
async def list_organisation_followers(hub: HubDep, organisation: str) -> list[dict[str, Any]]:
    """Nobody. Raises AccountNotFound."""
    await read(hub, lambda session: accounts.find_organisation(session, organisation))
    return []


@router.get("/api/settings/repositories")
@router.get("/api/organizations/{namespace}/settings/repositories")
async def list_holdings(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    namespace: str | None = None,
    skip: Skip = 0,
    limit: Limit = PAGE,
) -> list[dict[str, Any]]:
    """The repositories of the caller or of an account that they belong to, with the bytes that they take."""
    require_signed_in(caller)

    def work(session: Session) -> Sequence[Holding]:
        return holdings.repositories(session, caller, accounts.find(session, namespace or str(caller.name)))

    found = (await read(hub, work))[skip:]
    return [_holding_json(one) for one in one_page(request, response, public_url, found, skip=skip, limit=limit)]


def _holding_json(one: Holding) -> dict[str, Any]:
    return {
        "id": one.repo.full_name,
        "type": "model",
        "updatedAt": timestamp(one.repo.updated_at),
        "visibility": "private" if one.repo.is_private else "public",
        "storage": one.size_bytes,
        "storagePercent": one.percent,
    }
