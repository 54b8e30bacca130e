"""Recipes: read, explained before any work, and kept by their digest."""

import json
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Recipe
from adapterhub.hub.errors import NotFetched, NotFound, RecipeNotFound
from adapterhub.hub.services import licences, mirror_inputs, recipe_inputs, repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.resolve import Resolved, resolve_expression
from adapterhub.merging.plan import RUNTIME_BYTES, Plan, plan
from adapterhub.merging.recipes.expression import parse


def parsed(text: str) -> dict[str, Any]:
    """The expression as it prints, and the names in it. Raises ExpressionError, RecipeTooLarge."""
    recipe = parse(text)
    return {"text": str(recipe), "references": [ref.address for ref in recipe.references()]}


def explain(hub: Hub, caller: Caller, text: str) -> dict[str, Any]:
    """What a merge by `text` would do: inputs by commit, bytes of the result, memory, licence. Raises as `planned`."""
    resolved, found = planned(hub, caller, text)
    joined = licences.join(one.licence for one in resolved.revisions.values())
    described = found.describe()
    return described | {
        "digest": found.recipe_digest,
        "canonical": json.loads(found.canonical),
        "licences": joined,
    }


def planned(
    hub: Hub,
    caller: Caller,
    text: str,
    *,
    pins: dict[str, str] | None = None,
    as_kind: str | None = None,
    dtype: str | None = None,
) -> tuple[Resolved, Plan]:
    """The recipe with its names resolved, and its plan. Raises as `resolve_expression` and `merging.plan.plan`.

    A plan reads headers, which a mirrored input need not be here for; where it reads tensors too, as `plan` does for a
    difference of models, NotFetched is raised until they are.
    """
    resolved = resolve_expression(hub, caller, text, pins)
    memory_bytes = hub.settings.merge_memory_bytes - RUNTIME_BYTES
    try:
        found = plan(resolved.recipe, resolved.inputs, as_kind=as_kind, dtype=dtype, memory_bytes=memory_bytes)
    except NotFetched:
        mirror_inputs.require(hub, resolved.wanted)
        raise
    return resolved, found


def keep(session: Session, caller: Caller, found: Plan, text: str) -> None:
    """Remember a recipe by its digest; the first text that led to it stays."""
    if session.get(Recipe, found.recipe_digest) is None:
        session.add(
            Recipe(digest=found.recipe_digest, canonical=found.canonical, text=text, created_by=caller.account_id)
        )


def show(hub: Hub, caller: Caller, digest: str) -> dict[str, Any]:
    """A kept recipe, to those who may see all that it names. Raises RecipeNotFound."""
    with hub.db.read() as session:
        recipe = session.get(Recipe, digest)
        if recipe is None:
            raise RecipeNotFound(f"{digest}: no such recipe")
        canonical = json.loads(recipe.canonical)
        try:
            for one in recipe_inputs.of(canonical):
                repos.find(session, caller, one.name)
        except NotFound as hidden:
            raise RecipeNotFound(f"{digest}: no such recipe") from hidden
        return {
            "digest": recipe.digest,
            "text": recipe.text,
            "canonical": canonical,
            "created_at": recipe.created_at,
        }
