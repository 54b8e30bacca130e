"""Recipes: parsed, explained and shown."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as InPath

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import Explanation, ParsedRecipe, RecipeView, Written
from adapterhub.hub.services import recipes

router = APIRouter(prefix="/api/recipes", tags=["recipes"])


@router.post("/parse", response_model=ParsedRecipe)
async def parse_recipe(asked: Written) -> dict[str, Any]:
    """Parse an expression or a recipe file: how it prints, and which names are in it. Looks nothing up."""
    return await threads.run(recipes.parsed, asked.text, asked.syntax)


@router.post("/explain", response_model=Explanation)
async def explain_recipe(asked: Written, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Explain what a merge would do, before any work: inputs by commit, size, memory, licence."""
    return await threads.run(partial(recipes.explain, hub, caller, asked.text, syntax=asked.syntax))


@router.get("/{digest}", response_model=RecipeView)
async def show_recipe(
    digest: Annotated[str, InPath(pattern=r"^sha256:[0-9a-f]{64}$")], hub: HubDep, caller: CallerDep
) -> dict[str, Any]:
    """Show a recipe by its digest."""
    return await threads.run(recipes.show, hub, caller, digest)
