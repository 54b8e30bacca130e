"""Recipes: read, explained before any work, and kept by their digest."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col, func, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Recipe, now
from adapterhub.hub.errors import InvalidRequest, NotFetched, RecipeNotFound
from adapterhub.hub.services import licences, mirror_inputs, rates, recipe_texts, recipe_views, saved_recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.recipe_texts import EXPRESSION
from adapterhub.hub.services.resolve import Resolved, resolve_expression
from adapterhub.hub.services.saved_recipes import Draft
from adapterhub.merging.errors import NotRepresentable
from adapterhub.merging.explain import explained
from adapterhub.merging.plan import RUNTIME_BYTES, Plan, plan
from adapterhub.merging.recipes import compositions
from adapterhub.merging.recipes.canonical import recipe_digest
from adapterhub.merging.recipes.differences import as_json, differences
from adapterhub.merging.recipes.nodes import Composed

MERGE = "merge"
"""The kind of job that merges."""


def parsed(text: str, syntax: str = EXPRESSION) -> dict[str, Any]:
    """The expression as it prints, and the names in it. Raises ExpressionError, RecipeFileError, RecipeTooLarge."""
    recipe = recipe_texts.read(text, syntax)
    return {"text": str(recipe), "references": [ref.address for ref in recipe.references()]}


def explain(
    hub: Hub,
    caller: Caller,
    text: str,
    *,
    syntax: str = EXPRESSION,
    as_kind: str | None = None,
    dtype: str | None = None,
    heads: str | None = None,
) -> dict[str, Any]:
    """What a merge by `text` would do: inputs by commit, the method of each tensor, bytes, memory, time, licence.

    The time follows from this hub's own merges where there were any. Raises as `planned`.
    """
    resolved, found = planned(hub, caller, text, syntax=syntax, as_kind=as_kind, dtype=dtype, heads=heads)
    with hub.db.read() as session:
        told = explained(found, partial(rates.measured, session, MERGE))
    return told | {
        "digest": found.recipe_digest,
        "canonical": json.loads(found.canonical),
        "licences": licences.join(one.licence for one in resolved.revisions.values()),
    }


def planned(
    hub: Hub,
    caller: Caller,
    text: str,
    *,
    pins: Mapping[str, str] | None = None,
    syntax: str = EXPRESSION,
    as_kind: str | None = None,
    dtype: str | None = None,
    heads: str | None = None,
) -> tuple[Resolved, Plan]:
    """The recipe with its names resolved, and its plan. Raises as `resolve_expression` and `merging.plan.plan`.

    A plan reads headers, which a mirrored input need not be here for; where it reads tensors too, as `plan` does for a
    difference of models, NotFetched is raised until they are.
    """
    resolved = resolve_expression(hub, caller, text, pins, syntax=syntax)
    return resolved, planned_recipe(hub, resolved, as_kind=as_kind, dtype=dtype, heads=heads)


def planned_recipe(
    hub: Hub,
    resolved: Resolved,
    *,
    as_kind: str | None,
    dtype: str | None,
    heads: str | None = None,
    attaches: bool = False,
) -> Plan:
    """The plan of a resolved recipe. attaches: it is served, so its run-time patches fit too. Raises as `planned`."""
    memory_bytes = hub.settings.merge_memory_bytes - RUNTIME_BYTES
    try:
        return plan(
            resolved.recipe,
            resolved.inputs,
            as_kind=as_kind,
            dtype=dtype,
            memory_bytes=memory_bytes,
            attaches=attaches,
            heads=heads,
        )
    except NotFetched:
        mirror_inputs.require(hub, resolved.wanted)
        raise


def save(
    hub: Hub,
    caller: Caller,
    name: str,
    text: str,
    *,
    syntax: str = EXPRESSION,
    message: str = "",
    as_kind: str | None = None,
    dtype: str | None = None,
    private: bool = False,
) -> dict[str, Any]:
    """The next version of the saved recipe of that name, its inputs pinned to what they are now.

    A recipe that is made here is private where any input is private or gated. Raises InvalidName, NotAuthenticated,
    Forbidden; InvalidRequest where the recipe would stand inside of itself; and as `planned`.
    """
    with hub.db.read() as session:
        target = saved_recipes.require_target(session, caller, name)
    resolved = resolve_expression(hub, caller, text, syntax=syntax)
    meant = _checked(hub, resolved, as_kind=as_kind, dtype=dtype)
    if target is not None and target.id in resolved.inlined.ids:
        raise InvalidRequest(f"{name}: would stand inside of itself; write out what it adds to, or save another name")
    hides = any(one.repo.is_private or one.repo.gated for one in resolved.revisions.values())
    draft = Draft(syntax, text, recipe_digest(meant), message, as_kind, dtype, resolved.pins)

    def write(session: Session) -> dict[str, Any]:
        keep(session, caller, meant, text)
        session.flush()
        saved = saved_recipes.add(session, caller, name, draft, private=private or hides)
        return recipe_views.of(session, caller, saved_recipes.find(session, caller, name), saved.number)

    return hub.db.transact(write)


def difference(hub: Hub, caller: Caller, before: str, after: str) -> dict[str, Any]:
    """What two recipes differ in: each a saved recipe's name, the digest of a kept one, or an expression.

    "ns/name" is the saved recipe of that name where there is one, else the repository. Raises RecipeNotFound, and as
    `planned`.
    """
    old, new = (_meant(hub, caller, text) for text in (before, after))
    changes = differences(old.canonical, new.canonical)
    sides = [{"name": one.name, "digest": one.digest} for one in (old, new)]
    return {
        "before": sides[0],
        "after": sides[1],
        "is_same": old.digest == new.digest,
        "changes": as_json(changes),
    }


@dataclass(frozen=True)
class _Meant:
    """A recipe that somebody named, and what it means."""

    name: str
    digest: str
    canonical: Mapping[str, Any]


def _meant(hub: Hub, caller: Caller, text: str) -> _Meant:
    if text.startswith("sha256:"):
        return _Meant(text, text, show(hub, caller, text)["canonical"])
    if saved_recipes.is_address(text):
        with hub.db.read() as session, suppress(RecipeNotFound):
            saved = saved_recipes.get(session, caller, *saved_recipes.split_address(text))
            return _Meant(saved.address, saved.version.digest, saved.canonical)
    meant = _checked(hub, resolve_expression(hub, caller, text))
    return _Meant(text, recipe_digest(meant), json.loads(meant))


def _checked(hub: Hub, resolved: Resolved, *, as_kind: str | None = None, dtype: str | None = None) -> str:
    """The canonical recipe, once a plan says that it can be computed: of a composition each of its members.

    Raises as `planned`, and NotRepresentable for the form of a composition's result, which does not exist.
    """
    root = resolved.recipe.root
    if not isinstance(root, Composed):
        return planned_recipe(hub, resolved, as_kind=as_kind, dtype=dtype).canonical
    if as_kind or dtype:
        raise NotRepresentable(f"{as_kind or dtype}: {compositions.refusal(root)}")
    for member in compositions.composition_of(resolved.recipe).members:
        planned_recipe(hub, replace(resolved, recipe=member.recipe), as_kind=None, dtype=None, attaches=True)
    return resolved.canonical


def keep(session: Session, caller: Caller, canonical: str, text: str) -> None:
    """Remember a canonical recipe by its digest, for good; the first text that led to it stays."""
    found = session.get(Recipe, recipe_digest(canonical))
    if found is None:
        session.add(_row(caller, canonical, text))
    else:
        found.served_at = None


def keep_served(hub: Hub, caller: Caller, canonical: str, text: Callable[[], str]) -> None:
    """Remember a recipe because it is served: of those the hub knows so many, the longest unasked go first.

    text: asked for where the recipe is not known yet.
    """
    digest = recipe_digest(canonical)
    with hub.db.read() as session:
        found = session.get(Recipe, digest)
        if found is not None and (found.served_at is None or now() - found.served_at < _DAY):
            return
    most = hub.settings.served_recipes

    def work(session: Session) -> None:
        found = session.get(Recipe, digest)
        if found is None:
            found = _row(caller, canonical, text())
            session.add(found)
        elif found.served_at is None:
            return
        found.served_at = now()
        session.flush()
        count = session.exec(select(func.count()).where(col(Recipe.served_at).is_not(None))).one()
        if count > most:
            _forget(session, count - most + most // 10)  # some more, so that not every request has to

    hub.db.transact(work)


_DAY = timedelta(days=1)


def _row(caller: Caller, canonical: str, text: str) -> Recipe:
    return Recipe(digest=recipe_digest(canonical), canonical=canonical, text=text, created_by=caller.account_id)


def _forget(session: Session, count: int) -> None:
    """Delete so many recipes that were only served, the longest unasked first."""
    served = select(Recipe.digest).where(col(Recipe.served_at).is_not(None))
    oldest = served.order_by(col(Recipe.served_at)).limit(count)
    session.exec(delete(Recipe).where(col(Recipe.digest).in_(oldest)))


def show(hub: Hub, caller: Caller, digest: str) -> dict[str, Any]:
    """A kept recipe, to those who may see all that it names. Raises RecipeNotFound."""
    with hub.db.read() as session:
        recipe = session.get(Recipe, digest)
        if recipe is None:
            raise RecipeNotFound(f"{digest}: no such recipe")
        canonical = json.loads(recipe.canonical)
        if not saved_recipes.sees(session, caller, canonical):
            raise RecipeNotFound(f"{digest}: no such recipe")
        return {
            "digest": recipe.digest,
            "text": recipe.text,
            "canonical": canonical,
            "created_at": recipe.created_at,
        }
