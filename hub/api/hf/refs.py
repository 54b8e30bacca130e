"""Branches and tags. Source: huggingface_hub/hf_api.py create_branch, create_tag, list_repo_refs."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.hf.addressing import RepoId, find, read, write
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import Ref
from adapterhub.hub.services import refs

router = APIRouter(prefix="/api/models/{namespace}/{name}", route_class=RawRoute)


class BranchStart(BaseModel):
    """Where a branch begins; the default branch's head when it is not said."""

    startingPoint: str | None = None  # noqa: N815  the client's spelling


class NewTag(BaseModel):
    """A tag to make."""

    tag: str
    message: str | None = None


@router.get("/refs")
async def list_refs(hub: HubDep, caller: CallerDep, repo_id: RepoId, include_prs: bool = False) -> dict[str, Any]:
    """Every branch and tag with its commit; the client insists on all lists, also on those that are always empty."""
    found = await read(hub, lambda session: refs.list_refs(session, find(session, caller, repo_id)))
    shape: dict[str, Any] = {"branches": _those(found, refs.BRANCH), "tags": _those(found, refs.TAG), "converts": []}
    return {**shape, "pullRequests": _those(found, refs.PULL_REQUEST)} if include_prs else shape


def _those(found: list[Ref], prefix: str) -> list[dict[str, str]]:
    return [
        {"name": ref.name.removeprefix(prefix), "ref": ref.name, "targetCommit": ref.target_oid}
        for ref in found
        if ref.name.startswith(prefix)
    ]


@router.post("/branch/{branch}")
async def create_branch(
    hub: HubDep, caller: CallerDep, repo_id: RepoId, branch: str, start: BranchStart | None = None
) -> None:
    """Make a branch. Raises RefExists, which `exist_ok=True` swallows."""
    point = start.startingPoint if start else None
    await write(hub, lambda session: refs.create_branch(session, caller, find(session, caller, repo_id), branch, point))


@router.delete("/branch/{branch}")
async def delete_branch(hub: HubDep, caller: CallerDep, repo_id: RepoId, branch: str) -> None:
    """Remove a branch; its commits stay reachable by their ids."""
    await write(hub, lambda session: refs.delete_branch(session, caller, find(session, caller, repo_id), branch))


@router.post("/tag/{revision}")
async def create_tag(hub: HubDep, caller: CallerDep, repo_id: RepoId, revision: str, new: NewTag) -> None:
    """Make a tag at `revision`. Raises RefExists, which `exist_ok=True` swallows."""
    await write(
        hub,
        lambda session: refs.create_tag(
            session, caller, find(session, caller, repo_id), new.tag, revision, new.message or ""
        ),
    )


@router.delete("/tag/{tag}")
async def delete_tag(hub: HubDep, caller: CallerDep, repo_id: RepoId, tag: str) -> None:
    """Remove a tag."""
    await write(hub, lambda session: refs.delete_tag(session, caller, find(session, caller, repo_id), tag))
