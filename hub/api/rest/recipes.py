"""Recipes: parsed, explained and shown."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as InPath

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import Explained, Explanation, Expression, ParsedRecipe, RecipeView
from adapterhub.hub.services import recipes

router = APIRouter(prefix="/api/recipes", tags=["recipes"])


@router.post("/parse", response_model=ParsedRecipe)
async def parse_recipe(asked: Expression) -> dict[str, Any]:
    """Parse an expression: how it prints, and which names are in it. Looks nothing up."""
    return await threads.run(recipes.parsed, asked.expression)


@router.post("/explain", response_model=Explanation)
async def explain_recipe(asked: Explained, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Explain what a merge would do, before any work: inputs by commit, methods, size, memory, time, licence."""
    explain = partial(recipes.explain, hub, caller, asked.expression, as_kind=asked.as_kind, dtype=asked.dtype)
    return await threads.run(explain)


@router.get("/{digest}", response_model=RecipeView)
async def show_recipe(
    digest: Annotated[str, InPath(pattern=r"^sha256:[0-9a-f]{64}$")], hub: HubDep, caller: CallerDep
) -> dict[str, Any]:
    """Show a recipe by its digest."""
    return await threads.run(recipes.show, hub, caller, digest)
