"""The catalogue: repositories that a caller may see, searched, filtered, sorted, a page at a time."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, false, func, or_, select, union
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from adapterhub.hub.db.tables import LineageEdge, Patch, Ref, Repository, RepositoryName, RepositoryTag, RevisionFacts
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import describe, patch_list, search_index
from adapterhub.hub.services.access import Caller, readable
from adapterhub.hub.services.names import is_storable
from adapterhub.hub.services.refs import BRANCH

MAX_LIMIT = 1000

_COLUMNS = {
    "updated": col(Repository.updated_at),
    "created": col(Repository.created_at),
    "downloads": col(Repository.downloads),
    "likes": col(Repository.likes),
    "size": col(RevisionFacts.size_bytes),
    "name": col(Repository.name_key),
}
SORTS = tuple(_COLUMNS)
"""All descend but name."""


@dataclass(frozen=True)
class Filters:
    """What to show. Every field that is not empty narrows; `tags` must all be there.

    query: words, each of which must occur in name, tags or card. base: a repository or declared name. author: a
    namespace. task: a pipeline tag. kind: of the whole or of any patch in it. parameters: least and greatest number of
    them, None where there is no bound; a repository with none fits no bound.
    """

    query: str = ""
    kind: str = ""
    base: str = ""
    licence: str = ""
    task: str = ""
    author: str = ""
    tags: Sequence[str] = ()
    is_gated: bool | None = None
    parameters: tuple[int | None, int | None] = (None, None)


@dataclass(frozen=True)
class Found:
    """One repository with what is known of the head of its default branch."""

    repo: Repository
    commit: str
    facts: RevisionFacts


@dataclass(frozen=True)
class Page:
    """Some of what was found.

    total: number of all of it, None where it was not counted. cursor: where the next page begins, None on the last.
    """

    rows: list[Found]
    total: int | None
    cursor: str | None


def search(
    session: Session,
    caller: Caller,
    query: str = "",
    *,
    kind: str = "",
    base: str = "",
    licence: str = "",
    task: str = "",
    author: str = "",
    tags: Sequence[str] = (),
    sort: str = "updated",
    limit: int = 30,
    cursor: str | None = None,
) -> dict[str, Any]:
    """The JSON of GET /api/patches: {"items": summaries, "total", "cursor", "kinds": all there are to choose from}.

    Raises InvalidRequest for an unknown sort, a cursor that is none of ours, or a query that is too long.
    """
    filters = Filters(query, kind, base, licence, task, author, tags)
    page = listing(session, caller, filters, sort=sort, limit=limit, cursor=cursor)
    kinds = session.scalars(_heads(caller, col(RevisionFacts.kind)).distinct().order_by(col(RevisionFacts.kind)))
    lines = describe.summaries(session, caller, [(f.repo, f.facts) for f in page.rows])
    for line, found in zip(lines, page.rows, strict=True):
        many = query and line["patch_count"] > 1
        line["folders"] = patch_list.matches(session, found.repo, found.commit, query) if many else []
    return {
        "items": lines,
        "total": page.total,
        "cursor": page.cursor,
        "kinds": list(kinds),
    }


def lines(session: Session, caller: Caller, repository_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Those repositories as lines of the catalogue, in that order; what `caller` may not see is left out."""
    wanted = col(Repository.id).in_(repository_ids)
    rows = {
        row.id: (row, facts) for row, facts in session.execute(_heads(caller, Repository, RevisionFacts).where(wanted))
    }
    return describe.summaries(session, caller, [rows[one] for one in repository_ids if one in rows])


def listing(
    session: Session,
    caller: Caller,
    filters: Filters,
    *,
    sort: str = "updated",
    limit: int = 30,
    cursor: str | None = None,
    reverse: bool = False,
    is_counted: bool = True,
) -> Page:
    """The rows that `search` words. limit: clamped to 1 to 1000. reverse: in the other order. Raises as `search`.

    is_counted: whether to look at every row for their number, which takes long where there are many.
    """
    if sort not in _COLUMNS:
        raise InvalidRequest(f"sort {sort!r}: one of {', '.join(SORTS)}")
    limit = max(1, min(limit, MAX_LIMIT))
    conditions = _conditions(session, caller, filters)
    total = session.scalar(_heads(caller, func.count()).where(*conditions)) if is_counted else None
    by, key = _COLUMNS[sort], col(Repository.id)
    ascending = (sort == "name") != reverse
    after = [_after(sort, cursor, ascending=ascending)] if cursor else []
    order = (by.asc(), key.asc()) if ascending else (by.desc(), key.desc())
    rows = session.execute(
        _heads(caller, Repository, col(Ref.target_oid), RevisionFacts)
        .where(*conditions, *after)
        .order_by(*order)
        .limit(limit + 1)
    ).all()
    found = [Found(repo, commit, facts) for repo, commit, facts in rows[:limit]]
    return Page(found, total, _cursor(sort, found[-1]) if len(rows) > limit else None)


def tags_by_type(session: Session, caller: Caller) -> dict[str, list[str]]:
    """Every tag of the repositories that `caller` may see, sorted, by what it speaks of; prefixed ones as they are."""
    tags = select(col(RepositoryTag.tag)).join(Repository, col(Repository.id) == col(RepositoryTag.repository_id))
    left = set(session.scalars(tags.where(readable(caller)).distinct()))
    libraries = set(session.scalars(_heads(caller, col(RevisionFacts.library)).distinct()))
    tasks = set(session.scalars(_heads(caller, col(RevisionFacts.pipeline_tag)).distinct()))
    found = {
        "pipeline_tag": left & tasks,
        "library": left & libraries,
        "language": left & _languages(session, caller),
        "license": {tag for tag in left if tag.startswith("license:")},
        "dataset": {tag for tag in left if tag.startswith("dataset:")},
    }
    for kind in found.values():
        left -= kind
    found["other"] = {tag for tag in left if not tag.startswith("base_model:")}
    return {kind: sorted(named) for kind, named in found.items()}


def _languages(session: Session, caller: Caller) -> set[str]:
    """The languages that cards declare, one of them or a list."""
    stated = session.scalars(_heads(caller, col(RevisionFacts.card)["language"].as_string()).distinct())
    found: set[str] = set()
    for text in stated:
        many = json.loads(text) if text and text.startswith("[") else [text]
        found.update(str(one) for one in many if one)
    return found


def _heads(caller: Caller, *what: Any) -> Select[Any]:
    """SELECT `what` of the readable repositories, each joined with the facts of the head of its default branch."""
    head = and_(col(Ref.repository_id) == col(Repository.id), col(Ref.name) == BRANCH + col(Repository.default_branch))
    facts = and_(
        col(RevisionFacts.repository_id) == col(Repository.id), col(RevisionFacts.commit_oid) == col(Ref.target_oid)
    )
    statement: Select[Any] = select(*what).select_from(Repository).join(Ref, head).join(RevisionFacts, facts)
    return statement.where(readable(caller))


def _conditions(session: Session, caller: Caller, filters: Filters) -> list[ColumnElement[bool]]:
    asked = (filters.kind, filters.base, filters.licence, filters.task, filters.author, *filters.tags)
    if not all(map(is_storable, asked)):
        return [false()]
    wanted = [search_index.matches(session, filters.query)]
    if filters.kind:
        wanted.append(or_(col(RevisionFacts.kind) == filters.kind, _has_patch(col(Patch.kind) == filters.kind)))
    if filters.base:
        wanted.append(or_(_has_tag(f"base_model:{filters.base}"), _has_patch(_is_base(filters.base))))
    if filters.licence:
        wanted.append(col(RevisionFacts.licence) == filters.licence)
    if filters.task:
        wanted.append(or_(col(RevisionFacts.pipeline_tag) == filters.task, _has_tag(filters.task)))
    if filters.author:
        wanted.append(col(Repository.name_key).startswith(filters.author.casefold() + "/", autoescape=True))
    if filters.is_gated is not None:
        wanted.append(col(Repository.gated).is_not(None) if filters.is_gated else col(Repository.gated).is_(None))
    least, greatest = filters.parameters
    if (least, greatest) != (None, None):
        wanted.append(col(RevisionFacts.parameter_count) >= max(1, least or 0))
    if greatest is not None:
        wanted.append(col(RevisionFacts.parameter_count) <= greatest)
    tagged = (_is_tagged(caller, tag) for tag in filters.tags)
    return [condition for condition in (*wanted, *tagged) if condition is not None]


def _is_tagged(caller: Caller, tag: str) -> ColumnElement[bool]:
    """Whether the tag is there; one that names a base also finds what was made of it under another of its names."""
    word, _, name = tag.partition(":")
    if word != "base_model":
        return _has_tag(tag)
    relation, _, rest = name.partition(":")
    tagged = select(col(RepositoryTag.repository_id)).where(col(RepositoryTag.tag) == tag)
    return col(Repository.id).in_(union(tagged, _made_of(caller, rest or name, relation if rest else "")))


def _made_of(caller: Caller, name: str, relation: str) -> Select[Any]:
    """Repositories whose head was made of the one that has or had that name, where `caller` may see it."""
    base = (
        select(col(RepositoryName.repository_id))
        .join(Repository, col(Repository.id) == col(RepositoryName.repository_id))
        .where(col(RepositoryName.name_key) == name.casefold(), readable(caller))
        .correlate(None)
    )
    child = aliased(Repository)
    head = and_(
        col(Ref.repository_id) == col(child.id),
        col(Ref.name) == BRANCH + col(child.default_branch),
        col(Ref.target_oid) == col(LineageEdge.child_commit),
    )
    made = (
        select(col(child.id))
        .join(LineageEdge, col(LineageEdge.child_repository_id) == col(child.id))
        .join(Ref, head)
        .where(col(LineageEdge.parent_repository_id).in_(base))
        .correlate(None)
    )
    return made.where(col(LineageEdge.relation) == relation) if relation else made


def _has_tag(tag: str) -> ColumnElement[bool]:
    return exists().where(col(RepositoryTag.repository_id) == col(Repository.id), col(RepositoryTag.tag) == tag)


def _has_patch(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    here = col(Patch.repository_id) == col(Repository.id), col(Patch.commit_oid) == col(Ref.target_oid)
    return exists().where(*here, condition)


def _is_base(name: str) -> ColumnElement[bool]:
    """Whether the patch's base is the repository of that name, under whichever name the patch declares it."""
    base = select(col(RepositoryName.repository_id)).where(col(RepositoryName.name_key) == name.casefold())
    return or_(col(Patch.base_name) == name, col(Patch.base_repository_id).in_(base))


def _after(sort: str, cursor: str, *, ascending: bool) -> ColumnElement[bool]:
    """The condition under which a row comes after `cursor` in that order."""
    try:
        kind, written, last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        value = datetime.fromisoformat(written) if sort in ("updated", "created") else written
        right = kind == sort and isinstance(last, str) and isinstance(value, str if sort == "name" else int | datetime)
    except (ValueError, TypeError, binascii.Error):
        right = False
    if not right:
        raise InvalidRequest("cursor: not one that this list gave for this sort; begin without one")
    by, key = _COLUMNS[sort], col(Repository.id)
    if ascending:
        return or_(by > value, and_(by == value, key > last))
    return or_(by < value, and_(by == value, key < last))


def _cursor(sort: str, last: Found) -> str:
    values: dict[str, Any] = {
        "updated": last.repo.updated_at.isoformat(),
        "created": last.repo.created_at.isoformat(),
        "downloads": last.repo.downloads,
        "likes": last.repo.likes,
        "size": last.facts.size_bytes,
        "name": last.repo.name_key,
    }
    written = json.dumps([sort, values[sort], last.repo.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(written.encode()).rstrip(b"=").decode()
