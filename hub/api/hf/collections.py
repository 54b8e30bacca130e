"""Collections. Source: huggingface_hub/hf_api.py list_collections, create_collection, add_collection_item, ..."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from markupsafe import escape
from pydantic import BaseModel
from sqlmodel import Session
from starlette.responses import JSONResponse

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.errors import domain_response
from adapterhub.hub.api.hf.addressing import read, write
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import PAGE, Limit, Skip, one_page
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import CollectionItem, Repository
from adapterhub.hub.errors import CollectionExists
from adapterhub.hub.services import collections
from adapterhub.hub.services.collections import Shown

router = APIRouter(prefix="/api/collections", route_class=RawRoute)


class NewCollection(BaseModel):
    """A collection to make."""

    title: str
    namespace: str
    description: str = ""
    private: bool = False


class Changes(BaseModel):
    """What to change; absent fields stay."""

    title: str | None = None
    description: str | None = None
    position: int | None = None
    private: bool | None = None
    theme: str | None = None


class Item(BaseModel):
    """A thing by its type and name."""

    id: str
    type: str


class NewItem(BaseModel):
    """A thing to put into a collection."""

    item: Item
    note: str = ""


class ItemChanges(BaseModel):
    """What to change of an item; absent fields stay."""

    note: str | None = None
    position: int | None = None


def _slug(namespace: str, slug: str) -> str:
    return f"{namespace}/{slug}"


SlugDep = Annotated[str, Depends(_slug)]
"""The collection that a route's `{namespace}/{slug}` names."""


@router.get("")
async def list_collections(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    owner: Annotated[Sequence[str], Query()] = (),
    item: Annotated[Sequence[str], Query()] = (),
    sort: str = "lastModified",
    skip: Skip = 0,
    limit: Limit = PAGE,
) -> list[dict[str, Any]]:
    """Collections that the caller may see. limit: the most that the client takes in all, and so a hint for the page.

    A line holds no position: the client gives its own.
    """
    size = min(limit, PAGE)

    def work(session: Session) -> Sequence[Shown]:
        return collections.listing(session, caller, owners=owner, items=item, sort=sort, limit=size + 1, skip=skip)

    shown = one_page(request, response, public_url, await read(hub, work), skip=skip, limit=size)
    return [{key: value for key, value in collection_json(one).items() if key != "position"} for one in shown]


@router.post("")
async def create_collection(hub: HubDep, caller: CallerDep, new: NewCollection) -> Response:
    """Make a collection. When its title is taken, a 409 that names the one there, for `exists_ok=True`."""

    def work(session: Session) -> Shown:
        return collections.create(
            session, caller, new.namespace, new.title, description=new.description, private=new.private
        )

    try:
        made = await write(hub, work)
    except CollectionExists as error:
        told = domain_response("/api/collections", error)
        headers = {name: told.headers[name] for name in ("X-Error-Code", "X-Error-Message")}
        return JSONResponse({"error": str(error), "slug": error.slug}, told.status_code, headers)
    return JSONResponse(collection_json(made))


@router.get("/{namespace}/{slug}")
async def get_collection(hub: HubDep, caller: CallerDep, slug: SlugDep) -> dict[str, Any]:
    """A collection with its items. Raises CollectionNotFound."""
    return collection_json(await read(hub, lambda session: collections.get(session, caller, slug)))


@router.patch("/{namespace}/{slug}")
async def update_collection(hub: HubDep, caller: CallerDep, slug: SlugDep, changes: Changes) -> dict[str, Any]:
    """Change a collection; another title gives it another slug, and the old one leads to it."""
    shown = await write(hub, lambda session: collections.update(session, caller, slug, **changes.model_dump()))
    return {"success": True, "data": collection_json(shown)}


@router.delete("/{namespace}/{slug}")
async def delete_collection(hub: HubDep, caller: CallerDep, slug: SlugDep) -> None:
    """Delete a collection. Raises CollectionNotFound, which `missing_ok=True` swallows."""
    await write(hub, lambda session: collections.remove(session, caller, slug))


@router.post("/{namespace}/{slug}/items")
async def add_item(hub: HubDep, caller: CallerDep, slug: SlugDep, new: NewItem) -> dict[str, Any]:
    """Put a repository into a collection. Raises ItemExists, which `exists_ok=True` swallows."""
    return collection_json(
        await write(
            hub, lambda session: collections.add_item(session, caller, slug, new.item.type, new.item.id, new.note)
        )
    )


@router.patch("/{namespace}/{slug}/items/{item_id}")
async def update_item(hub: HubDep, caller: CallerDep, slug: SlugDep, item_id: str, changes: ItemChanges) -> None:
    """Give an item another note or place."""
    await write(hub, lambda session: collections.update_item(session, caller, slug, item_id, **changes.model_dump()))


@router.delete("/{namespace}/{slug}/items/{item_id}")
async def delete_item(hub: HubDep, caller: CallerDep, slug: SlugDep, item_id: str) -> None:
    """Take an item out. Raises ItemNotFound, which `missing_ok=True` swallows."""
    await write(hub, lambda session: collections.remove_item(session, caller, slug, item_id))


def collection_json(shown: Shown) -> dict[str, Any]:
    """The collection as the client's Collection reads it."""
    row = shown.row
    return {
        "slug": shown.slug,
        "title": row.title,
        "description": row.description or None,
        "owner": shown.owner,
        "items": [_item_json(item, repo) for item, repo in shown.items],
        "lastUpdated": timestamp(row.updated_at),
        "position": row.position,
        "private": row.is_private,
        "theme": row.theme,
        "upvotes": 0,
        "isUpvotedByUser": False,
    }


def _item_json(item: CollectionItem, repo: Repository) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "_id": item.id,
        "id": repo.full_name,
        "type": "model",
        "repoType": "model",
        "position": item.position,
        "author": repo.full_name.partition("/")[0],
        "private": repo.is_private,
        "gated": repo.gated or False,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "lastModified": timestamp(repo.updated_at),
    }
    return {**shape, "note": {"text": item.note, "html": str(escape(item.note))}} if item.note else shape
