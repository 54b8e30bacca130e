"""Statements that SQLite and PostgreSQL spell differently."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

_ROWS = 500
"""Rows of one INSERT, far below SQLite's 32 766 bound values at the width of our tables."""


def insert_missing(session: Session, table: type[SQLModel], rows: Iterable[dict[str, Any]]) -> None:
    """Insert those `rows` whose primary or unique key is not there yet; the others stay as they are."""
    pending = iter(rows)
    while some := list(islice(pending, _ROWS)):
        session.execute(_or_nothing(session, table).values(some))


def chunks(values: Iterable[str], size: int = 500) -> Iterable[Sequence[str]]:
    """`values` in lists of at most `size`, for IN clauses."""
    pending = iter(values)
    while some := list(islice(pending, size)):
        yield some


def _or_nothing(session: Session, table: type[SQLModel]) -> Insert:
    dialect = session.get_bind().dialect.name
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()
