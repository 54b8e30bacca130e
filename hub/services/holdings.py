"""What an account holds: its repositories, counted and with the bytes that they take."""

from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import Account, Blob, BlobOwner, Repository
from adapterhub.hub.services.access import Caller, readable, require_member


@dataclass(frozen=True)
class Holding:
    """A repository with the bytes of all files that it ever held, and their share in [0, 100] of its owner's."""

    repo: Repository
    size_bytes: int
    percent: float


def count_repositories(session: Session, caller: Caller, account: Account) -> int:
    """How many repositories of `account` the caller may see."""
    mine = Repository.owner_id == account.id, readable(caller)
    return session.exec(select(func.count()).select_from(Repository).where(*mine)).one()


def repositories(session: Session, caller: Caller, account: Account) -> list[Holding]:
    """Every repository of `account` that the caller may see, by name.

    Raises NotAuthenticated, and Forbidden unless `caller` belongs to the account.
    """
    require_member(session, caller, account)
    rows = session.exec(
        select(Repository, func.coalesce(func.sum(Blob.size_bytes), 0))
        .join(BlobOwner, col(BlobOwner.repository_id) == col(Repository.id), isouter=True)
        .join(Blob, col(Blob.digest) == col(BlobOwner.digest), isouter=True)
        .where(Repository.owner_id == account.id, readable(caller))
        .group_by(col(Repository.id))
        .order_by(col(Repository.name_key))
    ).all()
    total = sum(int(size) for _, size in rows) or 1
    return [Holding(repo, int(size), 100 * int(size) / total) for repo, size in rows]
