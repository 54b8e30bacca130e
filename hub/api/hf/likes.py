"""Likes. Source: huggingface_hub/hf_api.py unlike, list_repo_likers, list_liked_repos."""

from typing import Any

from fastapi import APIRouter, Request, Response

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import RepoId, find, read, write
from adapterhub.hub.api.hf.overviews import person_json
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import PAGE, Limit, Skip, one_page
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.services import likes

router = APIRouter(route_class=RawRoute)


@router.post("/api/models/{namespace}/{name}/like")
async def like(hub: HubDep, caller: CallerDep, repo_id: RepoId) -> dict[str, bool]:
    """Like a repository; once is enough. Raises RepoNotFound, NotAuthenticated, Forbidden."""
    await write(hub, lambda session: likes.like(session, caller, find(session, caller, repo_id)))
    return {"liked": True}


@router.delete("/api/models/{namespace}/{name}/like")
async def unlike(hub: HubDep, caller: CallerDep, repo_id: RepoId) -> dict[str, bool]:
    """Take one's like back. Raises RepoNotFound, NotAuthenticated, Forbidden."""
    await write(hub, lambda session: likes.unlike(session, caller, find(session, caller, repo_id)))
    return {"liked": False}


@router.get("/api/models/{namespace}/{name}/likers")
async def list_likers(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    repo_id: RepoId,
    skip: Skip = 0,
    limit: Limit = PAGE,
) -> list[dict[str, Any]]:
    """Who likes the repository, newest first."""
    found = await read(
        hub, lambda session: likes.likers(session, find(session, caller, repo_id), limit=limit + 1, skip=skip)
    )
    shown = one_page(request, response, public_url, found, skip=skip, limit=limit)
    return [person_json(account, public_url) for account in shown]


@router.get("/api/users/{user}/likes")
async def list_liked(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    user: str,
    skip: Skip = 0,
    limit: Limit = PAGE,
) -> list[dict[str, Any]]:
    """What a user likes of what the caller may see, newest first. Raises AccountNotFound."""
    found = await read(hub, lambda session: likes.liked(session, caller, user, limit=limit + 1, skip=skip))
    shown = one_page(request, response, public_url, found, skip=skip, limit=limit)
    return [{"createdAt": timestamp(at), "repo": {"name": repo.full_name, "type": "model"}} for repo, at in shown]
