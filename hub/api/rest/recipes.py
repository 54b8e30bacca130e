"""Recipes: parsed, explained, saved in versions, compared, and merged by again."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.rest.schemas import (
    Explained,
    Explanation,
    JobView,
    NewRecipe,
    ParsedRecipe,
    RecipeChanges,
    RecipeDifference,
    RecipeRun,
    RecipeView,
    ReproduceRequest,
    SavedRecipeList,
    SavedRecipeVersionList,
    SavedRecipeView,
    TwoRecipes,
    Written,
)
from adapterhub.hub.services import jobs, merges, recipe_views, recipes, reproductions, saved_recipes
from adapterhub.hub.services.access import require_jobs

router = APIRouter(prefix="/api/recipes", tags=["recipes"])

Text = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Version = Annotated[int | None, Query(ge=1, le=10**9)]


@router.post("/parse", response_model=ParsedRecipe)
async def parse_recipe(asked: Written) -> dict[str, Any]:
    """Parse an expression or a recipe file: how it prints, and which names are in it. Looks nothing up."""
    return await threads.run(recipes.parsed, asked.text, asked.syntax)


@router.post("/explain", response_model=Explanation)
async def explain_recipe(asked: Explained, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Explain what a merge would do, before any work: inputs by commit, methods, size, memory, time, licence."""
    explain = partial(
        recipes.explain, hub, caller, asked.text, syntax=asked.syntax, as_kind=asked.as_kind, dtype=asked.dtype
    )
    return await threads.run(explain)


@router.post("/diff", response_model=RecipeDifference)
async def compare_recipes(asked: TwoRecipes, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Tell what two recipes differ in: saved ones by name and version, kept ones by digest, or expressions."""
    return await threads.run(recipes.difference, hub, caller, asked.before, asked.after)


@router.post("/reproduce", status_code=202, response_model=JobView)
async def reproduce_result(asked: ReproduceRequest, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Make a merge's result again by the recipe.json in it, and compare file by file; the answer is the job.

    Its result tells `is_same`, a `sentence`, the state of each file, the first tensor that differs, and what in the
    versions and the machine is unlike.
    """
    require_jobs(caller)
    return jobs.view(await threads.run(reproductions.request, hub, caller, asked.repo, asked.revision))


@router.get("", response_model=SavedRecipeList)
async def list_recipes(
    request: Request,
    hub: HubDep,
    caller: CallerDep,
    endpoint: PublicUrl,
    search: Text = "",
    author: Text = "",
    limit: Limit = 30,
    after: Annotated[str, Query(max_length=200)] = "",
) -> dict[str, Any]:
    """List the saved recipes that you may see, by name, each with its latest version."""
    look = partial(recipe_views.listing, query=search, author=author, limit=limit, after=after)
    page = await threads.run(look, hub, caller)
    return _paged(request, endpoint, page, "after")


@router.post("", status_code=201, response_model=SavedRecipeView)
async def save_recipe(asked: NewRecipe, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Save a recipe under a name: the next version of it, with its names pinned to what they mean now."""
    save = partial(
        recipes.save,
        hub,
        caller,
        asked.name,
        asked.text,
        syntax=asked.syntax,
        message=asked.message,
        as_kind=asked.as_kind,
        dtype=asked.dtype,
        private=asked.private,
    )
    return await threads.run(save)


@router.get("/{digest}", response_model=RecipeView)
async def show_recipe(
    digest: Annotated[str, InPath(pattern=r"^sha256:[0-9a-f]{64}$")], hub: HubDep, caller: CallerDep
) -> dict[str, Any]:
    """Show a recipe by its digest."""
    return await threads.run(recipes.show, hub, caller, digest)


@router.get("/{namespace}/{name}", response_model=SavedRecipeView)
async def show_saved_recipe(
    namespace: str, name: str, hub: HubDep, caller: CallerDep, version: Version = None
) -> dict[str, Any]:
    """Show a version of a saved recipe, the latest unless one is named."""
    return await threads.run(recipe_views.show, hub, caller, f"{namespace}/{name}", version)


@router.get("/{namespace}/{name}/versions", response_model=SavedRecipeVersionList)
async def list_versions(
    request: Request,
    namespace: str,
    name: str,
    hub: HubDep,
    caller: CallerDep,
    endpoint: PublicUrl,
    limit: Limit = 30,
    before: Version = None,
) -> dict[str, Any]:
    """List the versions of a saved recipe, the latest first."""
    look = partial(recipe_views.versions, limit=limit, before=before)
    return _paged(request, endpoint, await threads.run(look, hub, caller, f"{namespace}/{name}"), "before")


@router.patch("/{namespace}/{name}", response_model=SavedRecipeView)
async def change_recipe(
    namespace: str, name: str, asked: RecipeChanges, hub: HubDep, caller: CallerDep
) -> dict[str, Any]:
    """Give a saved recipe another name, or show or hide it; its versions stay as they are."""

    def work(session: Session) -> dict[str, Any]:
        changed = saved_recipes.update(
            session, caller, f"{namespace}/{name}", new_name=asked.name, private=asked.private
        )
        return recipe_views.of(session, caller, changed)

    return await threads.run(hub.db.transact, work)


@router.delete("/{namespace}/{name}", status_code=204)
async def delete_recipe(namespace: str, name: str, hub: HubDep, caller: CallerDep) -> None:
    """Delete a saved recipe with all its versions; what was merged by it stays."""
    await threads.run(hub.db.transact, lambda session: saved_recipes.remove(session, caller, f"{namespace}/{name}"))


@router.post("/{namespace}/{name}/runs", status_code=202, response_model=JobView)
async def run_recipe(namespace: str, name: str, asked: RecipeRun, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Merge by a saved recipe, at the commits that it was saved with or at present ones; the answer is the job."""
    require_jobs(caller)
    rerun = partial(
        merges.rerun,
        hub,
        caller,
        f"{namespace}/{name}",
        asked.version,
        latest=asked.latest,
        push=asked.push,
        private=asked.private,
        message=asked.message,
    )
    return jobs.view(await threads.run(rerun))


def _paged(request: Request, endpoint: str, page: dict[str, Any], key: str) -> dict[str, Any]:
    """The page with the URL of the next one in place of where it begins."""
    following = page.pop(key)
    query = request.url.include_query_params(**{key: following}).query
    return page | {"next": f"{endpoint}{request.url.path}?{query}" if following else None}
