"""Saved recipes: named ns/name in a namespace of their own, in versions of which none is ever overwritten.

A recipe names repositories, so a version is shown to those who may see all of these; to others it has a number, an
author and a date. Whoever belongs to the recipe's account sees private ones.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import Account, Recipe, SavedRecipe, SavedRecipeVersion, now
from adapterhub.hub.errors import AccountNotFound, Forbidden, InvalidRequest, NotFound, RecipeExists, RecipeNotFound
from adapterhub.hub.services import accounts, audit, recipe_inputs, repos
from adapterhub.hub.services.access import Caller, readable_recipes, require_recipes, require_signed_in
from adapterhub.hub.services.names import check_repo_id, is_storable

PREFIX = "recipe/"
"""What stands before a saved recipe's name where the name of a repository could stand: in expressions."""

MESSAGE_CHARACTERS = 1000

_ADDRESS = re.compile(r"(?:recipe/)?(?P<name>[^/@]+/[^/@]+)(?:@(?P<version>[0-9]{1,9}))?")


@dataclass(frozen=True)
class Draft:
    """A version that is to be saved. The fields are those of `SavedRecipeVersion`."""

    syntax: str
    text: str
    digest: str
    message: str = ""
    as_kind: str | None = None
    dtype: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """One version of a saved recipe. canonical: of it."""

    row: SavedRecipe
    version: SavedRecipeVersion
    canonical: Mapping[str, Any]

    @property
    def address(self) -> str:
        """ "recipe/ns/name@version", which names it in expressions."""
        return f"{PREFIX}{self.row.full_name}@{self.version.number}"


def is_address(text: str) -> bool:
    """Whether `text` can name a saved recipe."""
    return _ADDRESS.fullmatch(text) is not None


def split_address(text: str) -> tuple[str, int | None]:
    """Name and version of "ns/name", "recipe/ns/name" or either with "@version". Raises RecipeNotFound for others."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise RecipeNotFound(f"{text}: no saved recipe; write namespace/name or namespace/name@version")
    return match["name"], int(match["version"]) if match["version"] else None


def find(session: Session, caller: Caller, name: str) -> SavedRecipe:
    """The saved recipe of that name, whatever its case. Raises RecipeNotFound, also where it is hidden."""
    key = name.casefold() if is_storable(name) else None
    row = session.exec(select(SavedRecipe).where(SavedRecipe.name_key == key, readable_recipes(caller))).first()
    if row is None:
        raise RecipeNotFound(f"{name}: no saved recipe of that name, or it is private and your token may not see it")
    return row


def of_id(session: Session, caller: Caller, recipe_id: str) -> SavedRecipe | None:
    """The saved recipe of that id, under whatever name; None where it is deleted or hidden."""
    return session.exec(select(SavedRecipe).where(SavedRecipe.id == recipe_id, readable_recipes(caller))).first()


def get(session: Session, caller: Caller, name: str, number: int | None = None) -> Saved:
    """One version of a saved recipe, the latest unless a number is given.

    Raises RecipeNotFound, also where it names something that `caller` may not see.
    """
    return version(session, caller, find(session, caller, name), number)


def version(session: Session, caller: Caller, row: SavedRecipe, number: int | None = None) -> Saved:
    """As `get`, of a recipe that was found."""
    found = session.get(SavedRecipeVersion, (row.id, number or row.version))
    if found is None:
        raise RecipeNotFound(f"{row.full_name}@{number}: no such version; the latest is {row.version}")
    canonical = json.loads(session.get_one(Recipe, found.digest).canonical)
    if not sees(session, caller, canonical):
        raise RecipeNotFound(f"{row.full_name}@{found.number}: names something that your token may not see")
    return Saved(row, found, canonical)


def sees(session: Session, caller: Caller, canonical: Mapping[str, Any]) -> bool:
    """Whether `caller` may know of every repository that a canonical recipe names."""
    try:
        for one in recipe_inputs.of(canonical):
            repos.find(session, caller, one.name)
    except NotFound:
        return False
    return True


def listing(
    session: Session, caller: Caller, *, query: str = "", author: str = "", limit: int, after: str = ""
) -> tuple[list[SavedRecipe], str | None]:
    """Saved recipes that `caller` may know of, by name, and the key after which the next page begins, None on the last.

    query: a part of the name; author: the account's name.
    """
    rows = select(SavedRecipe).where(readable_recipes(caller), col(SavedRecipe.name_key) > after)
    if query:
        rows = rows.where(col(SavedRecipe.name_key).contains(_key(query), autoescape=True))
    if author:
        rows = rows.where(col(SavedRecipe.name_key).startswith(_key(author) + "/", autoescape=True))
    found = list(session.exec(rows.order_by(col(SavedRecipe.name_key)).limit(limit + 1)))
    return found[:limit], found[limit - 1].name_key if len(found) > limit else None


def versions(
    session: Session, caller: Caller, name: str, *, limit: int, before: int | None = None
) -> tuple[SavedRecipe, list[SavedRecipeVersion], int | None]:
    """The recipe, its versions from the latest down, and the number before which the next page begins.

    Raises RecipeNotFound.
    """
    row = find(session, caller, name)
    rows = select(SavedRecipeVersion).where(SavedRecipeVersion.recipe_id == row.id)
    if before is not None:
        rows = rows.where(col(SavedRecipeVersion.number) < before)
    found = list(session.exec(rows.order_by(col(SavedRecipeVersion.number).desc()).limit(limit + 1)))
    return row, found[:limit], found[limit - 1].number if len(found) > limit else None


def of_digest(session: Session, caller: Caller, digest: str, *, limit: int) -> list[str]:
    """Versions that mean the recipe of that digest, "recipe/ns/name@version", of recipes that `caller` may know of."""
    same = col(SavedRecipeVersion.recipe_id) == col(SavedRecipe.id)
    rows = select(SavedRecipe.full_name, SavedRecipeVersion.number).join(SavedRecipeVersion, same)
    rows = rows.where(SavedRecipeVersion.digest == digest, readable_recipes(caller))
    order = col(SavedRecipe.name_key), col(SavedRecipeVersion.number).desc()
    return [f"{PREFIX}{name}@{number}" for name, number in session.exec(rows.order_by(*order).limit(limit))]


def require_target(session: Session, caller: Caller, name: str) -> SavedRecipe | None:
    """The recipe of that name that `caller` may save to, None where it is to be made.

    Raises InvalidName, NotAuthenticated, Forbidden.
    """
    namespace, _ = check_repo_id(name)
    require_recipes(session, caller, _account(session, caller, namespace, name))
    return session.exec(select(SavedRecipe).where(SavedRecipe.name_key == name.casefold())).first()


def add(session: Session, caller: Caller, name: str, draft: Draft, *, private: bool) -> SavedRecipeVersion:
    """The draft as the next version of the recipe of that name, which is made where there is none.

    private: of one that is made. Raises as `require_target`; InvalidRequest for a message that is too long.
    """
    if len(draft.message) > MESSAGE_CHARACTERS:
        raise InvalidRequest(f"message: at most {MESSAGE_CHARACTERS} characters")
    row = require_target(session, caller, name)
    if row is None:
        namespace, word = check_repo_id(name)
        owner = _account(session, caller, namespace, name)
        row = _made(session, owner, word, private=private)
    else:
        row = session.exec(select(SavedRecipe).where(SavedRecipe.id == row.id).with_for_update()).one()
    row.version += 1
    row.updated_at = now()
    saved = SavedRecipeVersion(
        recipe_id=row.id,
        number=row.version,
        syntax=draft.syntax,
        text=draft.text,
        as_kind=draft.as_kind,
        dtype=draft.dtype,
        pins=dict(draft.pins),
        digest=draft.digest,
        message=draft.message,
        created_by=str(caller.account_id),
    )
    session.add(row)
    session.add(saved)
    session.flush()
    audit.record(session, caller, "recipe.save", row.id, row.full_name, after=f"{row.version} {draft.digest}")
    return saved


def update(
    session: Session, caller: Caller, name: str, *, new_name: str | None = None, private: bool | None = None
) -> SavedRecipe:
    """The recipe under another name, or shown to others; what is None stays. Its old name is free again.

    Raises RecipeNotFound, InvalidName, NotAuthenticated, Forbidden; RecipeExists for a name in use.
    """
    row = _changeable(session, caller, name)
    before = row.full_name
    if new_name is not None and new_name != before:
        taken = require_target(session, caller, new_name)
        if taken is not None and taken.id != row.id:
            raise RecipeExists(f"{new_name}: a saved recipe has that name already")
        namespace, word = check_repo_id(new_name)
        owner = _account(session, caller, namespace, new_name)
        row.owner_id, row.full_name = owner.id, f"{owner.name}/{word}"
        row.name_key = row.full_name.casefold()
    if private is not None:
        row.is_private = private
    row.updated_at = now()
    session.add(row)
    session.flush()
    changed = {"private": private}
    audit.record(session, caller, "recipe.change", row.id, row.full_name, before=before, detail=changed)
    return row


def remove(session: Session, caller: Caller, name: str) -> None:
    """Delete a saved recipe with its versions; what was merged by it stays. Raises as `update`."""
    row = _changeable(session, caller, name)
    row.deleted_at, row.name_key = now(), None
    session.add(row)
    audit.record(session, caller, "recipe.delete", row.id, row.full_name)


def authors(session: Session, rows: Sequence[SavedRecipeVersion]) -> dict[str, str]:
    """Names of the accounts that saved those versions, by id."""
    ids = {row.created_by for row in rows}
    return dict(session.exec(select(Account.id, Account.name).where(col(Account.id).in_(ids))).all())


def _changeable(session: Session, caller: Caller, name: str) -> SavedRecipe:
    row = find(session, caller, name)
    require_recipes(session, caller, session.get_one(Account, row.owner_id))
    return row


def _made(session: Session, owner: Account, word: str, *, private: bool) -> SavedRecipe:
    full_name = f"{owner.name}/{word}"
    row = SavedRecipe(owner_id=owner.id, full_name=full_name, name_key=full_name.casefold(), is_private=private)
    session.add(row)
    session.flush()
    return row


def _account(session: Session, caller: Caller, namespace: str, name: str) -> Account:
    require_signed_in(caller)
    try:
        return accounts.find(session, namespace)
    except AccountNotFound:
        raise Forbidden(f"{name}: you ({caller.name}) have no right to the namespace {namespace}") from None


def _key(text: str) -> str:
    return text.casefold() if is_storable(text) else ""
