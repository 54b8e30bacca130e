"""The pages of saved recipes; their JSON twins are the routes under /api/recipes."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep, PublicUrl
from adapterhub.hub.context import Hub
from adapterhub.hub.services import recipe_views, recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.web.pages import query, render
from adapterhub.hub.web.sessions import VisitorDep

LISTED = 30
"""Recipes on each page of their list."""
VERSIONS = 50
"""Versions that the page of a recipe lists."""

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

Number = Annotated[int | None, Query(ge=1, le=10**9)]


@router.get("/recipes")
async def list_page(
    hub: HubDep,
    visitor: VisitorDep,
    search: Annotated[str, Query(max_length=200)] = "",
    author: Annotated[str, Query(max_length=100)] = "",
    after: Annotated[str, Query(max_length=200)] = "",
) -> HTMLResponse:
    """The saved recipes that the visitor may see, searched by name, a page at a time."""
    asked = {"query": search, "author": author, "after": after}
    page = await threads.run(lambda: recipe_views.listing(hub, visitor, limit=LISTED, **asked))
    return render(
        "recipes.html",
        visitor=visitor,
        items=page["items"],
        following=page["after"],
        name_part=search,
        author=author,
        json_twin="/api/recipes" + query({"search": search, "author": author, "after": after}),
    )


@router.get("/recipes/{owner}/{name}")
async def recipe_page(
    owner: str,
    name: str,
    hub: HubDep,
    visitor: VisitorDep,
    endpoint: PublicUrl,
    version: Number = None,
    against: Number = None,
) -> HTMLResponse:
    """One version of a saved recipe, its versions, and what it has otherwise than the one before or `against`."""
    page = await threads.run(_recipe, hub, visitor, f"{owner}/{name}", version, against)
    shown = page["recipe"]
    twin = f"/api/recipes/{shown['id']}?version={shown['version']}"
    return render("recipe.html", visitor=visitor, endpoint=endpoint, json_twin=twin, **page)


def _recipe(hub: Hub, caller: Caller, name: str, version: int | None, against: int | None) -> dict[str, Any]:
    shown = recipe_views.show(hub, caller, name, version)
    listed = recipe_views.versions(hub, caller, name, limit=VERSIONS)["items"]
    before = against or shown["version"] - 1
    seen = {one["version"] for one in listed if one["text"] is not None}
    changes = None
    if before in seen or against:
        address = shown["name"]
        found = recipes.difference(hub, caller, f"{address}@{before}", f"{address}@{shown['version']}")
        changes = [one["text"] for one in found["changes"]]
    return {"recipe": shown, "versions": listed, "before": before, "changes": changes}
