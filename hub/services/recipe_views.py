"""Saved recipes as JSON, as REST, the page and the command line show them."""

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import SavedRecipe, SavedRecipeVersion
from adapterhub.hub.errors import RecipeNotFound
from adapterhub.hub.services import saved_recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.saved_recipes import PREFIX

HIDDEN = ("text", "digest", "message")
"""What is shown of a version that names something which the caller may not see."""


def listing(
    hub: Hub, caller: Caller, *, query: str = "", author: str = "", limit: int = 30, after: str = ""
) -> dict[str, Any]:
    """Saved recipes by name, each with its latest version: {"items", "after"}."""
    with hub.db.read() as session:
        rows, following = saved_recipes.listing(session, caller, query=query, author=author, limit=limit, after=after)
        items = [_line(row) | _latest(session, caller, row) for row in rows]
    return {"items": items, "after": following}


def show(hub: Hub, caller: Caller, name: str, number: int | None = None) -> dict[str, Any]:
    """One version of a saved recipe, the latest unless a number is given. Raises RecipeNotFound."""
    with hub.db.read() as session:
        return of(session, caller, saved_recipes.find(session, caller, name), number)


def versions(hub: Hub, caller: Caller, name: str, *, limit: int = 30, before: int | None = None) -> dict[str, Any]:
    """The versions of a saved recipe, the latest first: {"items", "before"}. Raises RecipeNotFound."""
    with hub.db.read() as session:
        row, rows, following = saved_recipes.versions(session, caller, name, limit=limit, before=before)
        names = saved_recipes.authors(session, rows)
        items = [_version(session, caller, row, one, names) for one in rows]
    return {"items": items, "before": following}


def of(session: Session, caller: Caller, row: SavedRecipe, number: int | None = None) -> dict[str, Any]:
    """As `show`, of a recipe that was found."""
    found = saved_recipes.version(session, caller, row, number)
    names = saved_recipes.authors(session, [found.version])
    shown = _told(found.version, names) | {"canonical": dict(found.canonical)}
    return _line(row) | shown


def _latest(session: Session, caller: Caller, row: SavedRecipe) -> dict[str, Any]:
    latest = session.get_one(SavedRecipeVersion, (row.id, row.version))
    return _version(session, caller, row, latest, saved_recipes.authors(session, [latest]))


def _version(
    session: Session, caller: Caller, row: SavedRecipe, one: SavedRecipeVersion, names: Mapping[str, str]
) -> dict[str, Any]:
    """A version without its canonical form; what it says is null where it names what the caller may not see."""
    told = _told(one, names)
    try:
        saved_recipes.version(session, caller, row, one.number)
    except RecipeNotFound:
        return told | dict.fromkeys(HIDDEN)
    return told


def _line(row: SavedRecipe) -> dict[str, Any]:
    return {
        "id": row.full_name,
        "name": PREFIX + row.full_name,
        "private": row.is_private,
        "latest": row.version,
        "updated_at": row.updated_at.isoformat(),
    }


def _told(one: SavedRecipeVersion, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "version": one.number,
        "syntax": one.syntax,
        "text": one.text,
        "as": one.as_kind,
        "dtype": one.dtype,
        "digest": one.digest,
        "message": one.message,
        "author": names.get(one.created_by),
        "created_at": one.created_at.isoformat(),
    }
