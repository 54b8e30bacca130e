"""The catalogue: repositories listed, shown, and pictured by layer."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from adapterhub.hub.api import mirrored, threads
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.rest.schemas import Layers, PatchList, RepositoryList, RepositoryView
from adapterhub.hub.context import Hub
from adapterhub.hub.services import describe, layers, patch_list, search
from adapterhub.hub.services.access import Caller

router = APIRouter(prefix="/api/patches", tags=["patches"])

Text = Annotated[str, Query(max_length=200)]


@router.get("", response_model=RepositoryList)
async def list_patches(
    request: Request,
    hub: HubDep,
    caller: CallerDep,
    endpoint: PublicUrl,
    search: Text = "",
    kind: Text = "",
    base: Text = "",
    licence: Text = "",
    task: Text = "",
    author: Text = "",
    tag: Annotated[list[str] | None, Query(max_length=20)] = None,
    sort: Text = "updated",
    limit: Annotated[int, Query(ge=1, le=1000)] = 30,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> dict[str, Any]:
    """List what you may see, patches and models: searched, filtered, sorted, a page at a time."""
    filters = {"kind": kind, "base": base, "licence": licence, "task": task, "author": author, "tags": tag or []}
    page = await threads.run(_search, hub, caller, search, filters | {"sort": sort, "limit": limit, "cursor": cursor})
    following = page.pop("cursor")
    query = request.url.include_query_params(cursor=following).query
    return page | {"next": f"{endpoint}/api/patches?{query}" if following else None}


@router.get("/{namespace}/{name}", response_model=RepositoryView, dependencies=[Depends(mirrored.repo_id)])
async def show_patch(
    namespace: str,
    name: str,
    hub: HubDep,
    caller: CallerDep,
    revision: str | None = None,
    path: Annotated[str | None, Query(max_length=1024)] = None,
) -> dict[str, Any]:
    """Show everything known of one repository: patches, base, card, lineage, files, evaluations.

    Of its patches the first 100, or the one in the folder `path`; `/folders` lists all.
    """
    return await threads.run(describe.repo_view, hub, caller, f"{namespace}/{name}", revision, path)


@router.get("/{namespace}/{name}/folders", response_model=PatchList, dependencies=[Depends(mirrored.repo_id)])
async def list_folders(
    request: Request,
    namespace: str,
    name: str,
    hub: HubDep,
    caller: CallerDep,
    endpoint: PublicUrl,
    revision: str | None = None,
    search: Text = "",
    kind: Text = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str, Query(max_length=1024)] = "",
) -> dict[str, Any]:
    """List the patches that lie in one repository, in the order of their folders, a page at a time."""
    repo_id = f"{namespace}/{name}"
    look = partial(patch_list.listing, query=search, kind=kind, limit=limit, after=after)
    page = await threads.run(look, hub, caller, repo_id, revision)
    following = page.pop("after")
    query = request.url.include_query_params(after=following).query
    return page | {"next": f"{endpoint}/api/patches/{repo_id}/folders?{query}" if following else None}


@router.get("/{namespace}/{name}/layers", response_model=Layers, responses={202: {"model": Layers}})
async def show_layers(
    namespace: str,
    name: str,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    revision: str | None = None,
    path: Annotated[str, Query(max_length=1024)] = "",
) -> dict[str, Any]:
    """Show how much the patch in the folder `path` changes each module of each layer.

    A job computes it once: until it is done the status is 202 and the sites are empty.
    """
    found = await threads.run(layers.picture, hub, caller, f"{namespace}/{name}", revision, path)
    response.status_code = 202 if found["state"] in ("queued", "running") else 200
    return found


def _search(hub: Hub, caller: Caller, query: str, asked: dict[str, Any]) -> dict[str, Any]:
    with hub.db.read() as session:
        return search.search(session, caller, query, **asked)
