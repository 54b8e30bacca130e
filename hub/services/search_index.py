"""The full-text index of repositories: one document each, of the head of its default branch.

Text is split into words here and not by the database, so that SQLite's FTS5 and PostgreSQL's tsvector find the same.
"""

import re
import unicodedata
from collections.abc import Iterable

from sqlalchemy import ColumnElement, String, bindparam, column, text
from sqlmodel import Session, col, delete

from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Repository, RepositoryTag
from adapterhub.hub.errors import InvalidRequest

QUERY_CHARACTERS = 400
QUERY_WORDS = 16
BODY_CHARACTERS = 64 * 1024
"""How much of a card is searched."""
FOLDER_CHARACTERS = 512 * 1024
"""How much of the paths of a repository's patches is searched: of some ten thousand."""

_WORD = re.compile(r"[^\W_]{1,64}")
_PREFIX_LENGTH = 2
"""A word of at least this many characters also finds longer words that start with it."""


def words(written: str) -> list[str]:
    """The words of `written` as they are indexed: case-folded, without accents and signs."""
    folded = unicodedata.normalize("NFKD", written.casefold())
    return _WORD.findall("".join(c for c in folded if not unicodedata.combining(c)))


def index(session: Session, repo: Repository, tags: Iterable[str], body: str, folders: Iterable[str] = ()) -> None:
    """Replace the repository's document and tags in the transaction. folders: paths of the patches in it."""
    wanted = sorted(set(tags))
    session.execute(delete(RepositoryTag).where(col(RepositoryTag.repository_id) == repo.id))
    insert_missing(session, RepositoryTag, [{"repository_id": repo.id, "tag": tag} for tag in wanted])
    document = {
        "repository_id": repo.id,
        "name": " ".join(words(repo.full_name)),
        "tags": " ".join(words(" ".join(wanted))),
        "body": " ".join(words(body[:BODY_CHARACTERS]) + words(" ".join(folders)[:FOLDER_CHARACTERS])),
    }
    if _is_sqlite(session):
        statement = "INSERT OR REPLACE INTO search_document (rowid, repository_id, name, tags, body) "
        statement += "VALUES (:row, :repository_id, :name, :tags, :body)"
    else:
        statement = "INSERT INTO search_document (repository_id, name, tags, body) "
        statement += "VALUES (:repository_id, :name, :tags, :body) ON CONFLICT (repository_id) DO UPDATE "
        statement += "SET name = excluded.name, tags = excluded.tags, body = excluded.body"
    session.execute(text(statement), {"row": _row(repo.id)} | document)


def rename(session: Session, repo: Repository) -> None:
    """Let the repository be found by its present name."""
    where = "rowid = :row" if _is_sqlite(session) else "repository_id = :id"
    statement = text(f"UPDATE search_document SET name = :name WHERE {where}")  # noqa: S608  no outside text
    session.execute(statement, {"name": " ".join(words(repo.full_name)), "row": _row(repo.id), "id": repo.id})


def matches(session: Session, query: str) -> ColumnElement[bool] | None:
    """The SQL condition on `Repository` under which every word of `query` is in its document; None for no words.

    Raises InvalidRequest for a query above 400 characters or 16 words.
    """
    if len(query) > QUERY_CHARACTERS:
        raise InvalidRequest(f"search: {len(query)} characters; at most {QUERY_CHARACTERS} are searched for")
    wanted = words(query)
    if len(wanted) > QUERY_WORDS:
        raise InvalidRequest(f"search: {len(wanted)} words; at most {QUERY_WORDS} are searched for")
    if not wanted:
        return None
    if _is_sqlite(session):
        condition = "search_document MATCH :wanted"
        spelled = " AND ".join(f'"{w}"*' if len(w) >= _PREFIX_LENGTH else f'"{w}"' for w in wanted)
    else:
        condition = "document @@ CAST(:wanted AS tsquery)"
        spelled = " & ".join(f"'{w}':*" if len(w) >= _PREFIX_LENGTH else f"'{w}'" for w in wanted)
    found = text(f"SELECT repository_id FROM search_document WHERE {condition}")  # noqa: S608  no outside text
    found = found.bindparams(bindparam("wanted", spelled, String()))
    return col(Repository.id).in_(found.columns(column("repository_id", String())).scalar_subquery())


def _is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"


def _row(repository_id: str) -> int:
    """FTS5 finds rows fast by number alone: the first 60 bits of the random id."""
    return int(repository_id[:15], 16)
