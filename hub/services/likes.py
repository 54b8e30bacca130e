"""Likes: who likes which repository, and how many do."""

from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Account, Repository, RepositoryLike, now
from adapterhub.hub.services import accounts
from adapterhub.hub.services.access import Caller, readable, require_writing_token


def like(session: Session, caller: Caller, repo: Repository) -> None:
    """Let the caller like `repo`, once. Raises NotAuthenticated, Forbidden."""
    require_writing_token(caller)
    locked = _locked(session, repo)
    row = {"repository_id": repo.id, "account_id": caller.account_id, "created_at": now()}
    insert_missing(session, RepositoryLike, [row])
    _count(session, locked)


def unlike(session: Session, caller: Caller, repo: Repository) -> None:
    """Take the caller's like back; nothing happens where there is none. Raises NotAuthenticated, Forbidden."""
    require_writing_token(caller)
    locked = _locked(session, repo)
    if (present := session.get(RepositoryLike, (repo.id, caller.account_id))) is not None:
        session.delete(present)
    _count(session, locked)


def is_liked(session: Session, caller: Caller, repo: Repository) -> bool:
    """Whether the caller likes `repo`."""
    return not caller.is_anonymous and session.get(RepositoryLike, (repo.id, caller.account_id)) is not None


def likers(session: Session, repo: Repository, *, limit: int, skip: int = 0) -> list[Account]:
    """The accounts that like `repo`, the newest first."""
    rows = (
        select(Account)
        .join(RepositoryLike, col(RepositoryLike.account_id) == col(Account.id))
        .where(RepositoryLike.repository_id == repo.id)
        .order_by(col(RepositoryLike.created_at).desc(), col(Account.id))
    )
    return list(session.exec(rows.offset(skip).limit(limit)))


def liked(
    session: Session, caller: Caller, user: str, *, limit: int, skip: int = 0
) -> list[tuple[Repository, datetime]]:
    """The repositories that `user` likes and `caller` may see, with the time, newest first. Raises AccountNotFound."""
    account = accounts.find_user(session, user)
    rows = (
        select(Repository, col(RepositoryLike.created_at))
        .join(RepositoryLike, col(RepositoryLike.repository_id) == col(Repository.id))
        .where(RepositoryLike.account_id == account.id, readable(caller))
        .order_by(col(RepositoryLike.created_at).desc(), col(Repository.id))
    )
    return list(session.exec(rows.offset(skip).limit(limit)))


def count_liked(session: Session, caller: Caller, account: Account) -> int:
    """How many repositories the account likes that `caller` may see."""
    rows = (
        select(func.count())
        .select_from(RepositoryLike)
        .join(Repository, col(RepositoryLike.repository_id) == col(Repository.id))
        .where(RepositoryLike.account_id == account.id, readable(caller))
    )
    return session.exec(rows).one()


def _locked(session: Session, repo: Repository) -> Repository:
    """The repository's row, held to the end of the transaction, so that two who like it at once are both counted."""
    return session.exec(select(Repository).where(Repository.id == repo.id).with_for_update()).one()


def _count(session: Session, repo: Repository) -> None:
    session.flush()
    here = RepositoryLike.repository_id == repo.id
    repo.likes = session.exec(select(func.count()).select_from(RepositoryLike).where(here)).one()
    session.add(repo)
