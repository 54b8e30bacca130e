"""Collections: titled lists of repositories, each known by a slug that ends in 24 hex digits.

A private repository in a collection is shown to those who may see it; to others it is as if it were not there.
"""

import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import Session, col, delete, select

from adapterhub.hub.db.tables import Account, Collection, CollectionItem, Repository, now
from adapterhub.hub.errors import (
    AccountNotFound,
    CollectionExists,
    CollectionNotFound,
    InvalidRequest,
    ItemExists,
    ItemNotFound,
    RepoNotFound,
    UnsupportedRepoType,
)
from adapterhub.hub.services import accounts, audit, repos
from adapterhub.hub.services.access import Caller, readable, readable_collections, require_collections

THEMES = ("orange", "blue", "green", "purple", "pink", "indigo")
SORTS = ("lastModified", "trending", "upvotes")
"""Nothing is voted for here, so all three put the latest change first."""

TITLE_CHARACTERS = 120
DESCRIPTION_CHARACTERS = 1000
NOTE_CHARACTERS = 500
MAX_ITEMS = 1000
SHOWN_IN_LISTS = 4
"""Items of each collection that a list shows, as on huggingface.co."""

_SLUG = re.compile(r"(?P<owner>[^/]+)/(?:[^/]*-)?(?P<hex>[0-9a-f]{24})")
_SLUG_CHARACTERS = 60


@dataclass(frozen=True)
class Shown:
    """A collection as one caller sees it. items: with the repository that each stands for."""

    row: Collection
    owner: str
    items: Sequence[tuple[CollectionItem, Repository]]

    @property
    def slug(self) -> str:
        """ "ns/title-in-lower-case-<24 hex digits>", by the present title."""
        return slug_of(self.owner, self.row)


def slug_of(owner: str, row: Collection) -> str:
    """The slug of a collection of the account named `owner`."""
    folded = unicodedata.normalize("NFKD", row.title.casefold()).encode("ascii", "ignore").decode()
    title = re.sub(r"[^a-z0-9]+", "-", folded)[:_SLUG_CHARACTERS].strip("-") or "collection"
    return f"{owner}/{title}-{row.hex_id}"


def get(session: Session, caller: Caller, slug: str) -> Shown:
    """The collection of that slug, whose title may have changed since. Raises CollectionNotFound."""
    row, owner = _find(session, caller, slug)
    return _shown(session, caller, row, owner.name)


def listing(
    session: Session,
    caller: Caller,
    *,
    owners: Sequence[str] = (),
    items: Sequence[str] = (),
    sort: str = "lastModified",
    limit: int,
    skip: int = 0,
) -> list[Shown]:
    """Collections that the caller may see, the latest change first, each with its first items.

    owners: names of accounts, any of which may own it; items: "models/ns/name", any of which it may hold. Raises
    InvalidRequest for an unknown sort.
    """
    if sort not in SORTS:
        raise InvalidRequest(f"sort {sort!r}: one of {', '.join(SORTS)}")
    rows = select(Collection, col(Account.name)).join(Account, col(Account.id) == col(Collection.owner_id))
    rows = rows.where(readable_collections(caller))
    if owners:
        rows = rows.where(col(Collection.owner_id).in_(_ids(session, owners)))
    if items:
        holding = select(CollectionItem.collection_id).where(
            col(CollectionItem.repository_id).in_(_repositories(session, caller, items))
        )
        rows = rows.where(col(Collection.id).in_(holding))
    order = col(Collection.updated_at).desc(), col(Collection.id)
    found = session.exec(rows.order_by(*order).offset(skip).limit(limit)).all()
    return [_shown(session, caller, row, owner, limit=SHOWN_IN_LISTS) for row, owner in found]


def create(
    session: Session, caller: Caller, namespace: str, title: str, *, description: str = "", private: bool = False
) -> Shown:
    """A fresh collection. Raises AccountNotFound, NotAuthenticated, Forbidden, InvalidRequest; CollectionExists."""
    owner = accounts.find(session, namespace)
    require_collections(session, caller, owner)
    hex_id = secrets.token_hex(12)
    position = session.exec(select(func.count()).select_from(Collection).where(Collection.owner_id == owner.id)).one()
    row = Collection(
        hex_id=hex_id,
        owner_id=owner.id,
        title=_checked_title(session, owner, title),
        description=_checked(description, "description", DESCRIPTION_CHARACTERS),
        is_private=private,
        theme=THEMES[int(hex_id, 16) % len(THEMES)],
        position=position,
    )
    session.add(row)
    session.flush()
    audit.record(session, caller, "collection.create", row.id, slug_of(owner.name, row))
    return Shown(row, owner.name, [])


def update(
    session: Session,
    caller: Caller,
    slug: str,
    *,
    title: str | None = None,
    description: str | None = None,
    position: int | None = None,
    private: bool | None = None,
    theme: str | None = None,
) -> Shown:
    """The collection with those fields changed that are not None. Raises as `get` and `create`."""
    row, owner = _changeable(session, caller, slug)
    if title is not None and title != row.title:
        row.title = _checked_title(session, owner, title)
    if description is not None:
        row.description = _checked(description, "description", DESCRIPTION_CHARACTERS)
    if position is not None:
        row.position = max(0, position)
    if private is not None:
        row.is_private = private
    if theme is not None:
        if theme not in THEMES:
            raise InvalidRequest(f"theme {theme!r}: one of {', '.join(THEMES)}")
        row.theme = theme
    _touch(session, caller, "collection.update", row, owner)
    return _shown(session, caller, row, owner.name)


def remove(session: Session, caller: Caller, slug: str) -> None:
    """Delete a collection; the repositories in it stay. Raises as `get`, NotAuthenticated, Forbidden."""
    row, owner = _changeable(session, caller, slug)
    session.execute(delete(CollectionItem).where(col(CollectionItem.collection_id) == row.id))
    session.delete(row)
    audit.record(session, caller, "collection.delete", row.id, slug_of(owner.name, row))


def add_item(session: Session, caller: Caller, slug: str, kind: str, item_id: str, note: str = "") -> Shown:
    """The collection with that repository at its end.

    Raises as `get`, NotAuthenticated, Forbidden; UnsupportedRepoType for what is no model, RepoNotFound, ItemExists,
    InvalidRequest.
    """
    row, owner = _changeable(session, caller, slug)
    if kind != "model":
        raise UnsupportedRepoType(f"a {kind} cannot be in a collection here; this hub holds models and patches only")
    repo = repos.find(session, caller, item_id)
    present = _items(session, row)
    if any(one.repository_id == repo.id for one in present):
        raise ItemExists(f"{repo.full_name} is in the collection {slug_of(owner.name, row)} already")
    if len(present) >= MAX_ITEMS:
        raise InvalidRequest(f"{slug}: a collection holds at most {MAX_ITEMS} items")
    text = _checked(note, "note", NOTE_CHARACTERS)
    session.add(CollectionItem(collection_id=row.id, repository_id=repo.id, position=len(present), note=text))
    _touch(session, caller, "collection.update", row, owner)
    return _shown(session, caller, row, owner.name)


def update_item(
    session: Session, caller: Caller, slug: str, item_id: str, *, note: str | None = None, position: int | None = None
) -> None:
    """Give an item another note or place; the others move up or down. Raises as `remove_item`, InvalidRequest."""
    row, owner = _changeable(session, caller, slug)
    item = _item(session, row, item_id)
    if note is not None:
        item.note = _checked(note, "note", NOTE_CHARACTERS)
    if position is not None:
        others = [one for one in _items(session, row) if one.id != item.id]
        others.insert(max(0, position), item)
        _number(session, others)
    session.add(item)
    _touch(session, caller, "collection.update", row, owner)


def remove_item(session: Session, caller: Caller, slug: str, item_id: str) -> None:
    """Take an item out; the others close up. Raises as `get`, NotAuthenticated, Forbidden; ItemNotFound."""
    row, owner = _changeable(session, caller, slug)
    session.delete(_item(session, row, item_id))
    session.flush()
    _number(session, _items(session, row))
    _touch(session, caller, "collection.update", row, owner)


def _find(session: Session, caller: Caller, slug: str) -> tuple[Collection, Account]:
    match = _SLUG.fullmatch(slug)
    rows = select(Collection, Account).join(Account, col(Account.id) == col(Collection.owner_id))
    found = match and session.exec(rows.where(Collection.hex_id == match["hex"], readable_collections(caller))).first()
    if not match or not found or found[1].name.casefold() != match["owner"].casefold():
        raise CollectionNotFound(slug)
    return found[0], found[1]


def _changeable(session: Session, caller: Caller, slug: str) -> tuple[Collection, Account]:
    row, owner = _find(session, caller, slug)
    require_collections(session, caller, owner)
    return row, owner


def _shown(session: Session, caller: Caller, row: Collection, owner: str, limit: int = MAX_ITEMS) -> Shown:
    items = (
        select(CollectionItem, Repository)
        .join(Repository, col(Repository.id) == col(CollectionItem.repository_id))
        .where(CollectionItem.collection_id == row.id, readable(caller))
        .order_by(col(CollectionItem.position))
    )
    return Shown(row, owner, session.exec(items.limit(limit)).all())


def _items(session: Session, row: Collection) -> list[CollectionItem]:
    here = select(CollectionItem).where(CollectionItem.collection_id == row.id)
    return list(session.exec(here.order_by(col(CollectionItem.position))))


def _item(session: Session, row: Collection, item_id: str) -> CollectionItem:
    item = session.get(CollectionItem, item_id)
    if item is None or item.collection_id != row.id:
        raise ItemNotFound(f"{item_id}: no such item in this collection")
    return item


def _number(session: Session, items: Sequence[CollectionItem]) -> None:
    for position, item in enumerate(items):
        item.position = position
        session.add(item)


def _touch(session: Session, caller: Caller, deed: str, row: Collection, owner: Account) -> None:
    row.updated_at = now()
    session.add(row)
    session.flush()
    audit.record(session, caller, deed, row.id, slug_of(owner.name, row))


def _checked_title(session: Session, owner: Account, title: str) -> str:
    text = _checked(title.strip(), "title", TITLE_CHARACTERS)
    if not text:
        raise InvalidRequest("a collection needs a title")
    same = select(Collection).where(Collection.owner_id == owner.id, Collection.title == text)
    if (present := session.exec(same).first()) is not None:
        raise CollectionExists(text, slug_of(owner.name, present))
    return text


def _checked(text: str, what: str, limit: int) -> str:
    if len(text) > limit or not (text if what == "title" else text.replace("\n", "")).isprintable():
        raise InvalidRequest(f"{what}: at most {limit} printable characters")
    return text


def _ids(session: Session, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        try:
            found.append(accounts.find(session, name).id)
        except AccountNotFound:
            continue
    return found


def _repositories(session: Session, caller: Caller, items: Sequence[str]) -> list[str]:
    found = []
    for item in items:
        kind, _, name = item.partition("/")
        try:
            found += [repos.find(session, caller, name).id] if kind == "models" else []
        except RepoNotFound:
            continue
    return found
