"""What administrators do with mirrors: see them, pin them, have them looked up again, let their bytes go."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import (
    Account,
    Blob,
    Mirror,
    MirrorAccess,
    MirrorBlob,
    MirrorCheck,
    Repository,
    RepositoryName,
)
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import audit, mirror_files, mirror_missing, repos
from adapterhub.hub.services.access import Caller, require_admin

NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Care:
    """One mirror. size_bytes: of large files whose bytes are here; problem: why its source did not answer, or "".

    organisations: to whom alone it is shown, by name; None where everybody is.
    """

    name: str
    source: str
    is_pinned: bool
    size_bytes: int
    problem: str
    organisations: tuple[str, ...] | None


def listing(session: Session, caller: Caller) -> list[Care]:
    """Every mirror by name. For administrators. Raises NotAuthenticated, Forbidden."""
    require_admin(caller)
    here = (
        select(func.coalesce(func.sum(Blob.size_bytes), 0))
        .join(MirrorBlob, col(MirrorBlob.digest) == col(Blob.digest))
        .where(col(MirrorBlob.repository_id) == col(Mirror.repository_id))
        .scalar_subquery()
    )
    problem = (
        select(func.coalesce(func.max(MirrorCheck.problem), ""))
        .where(col(MirrorCheck.repository_id) == col(Mirror.repository_id))
        .scalar_subquery()
    )
    rows = session.exec(
        select(Repository.full_name, Mirror, here, problem)
        .join(Mirror, col(Mirror.repository_id) == col(Repository.id))
        .where(col(Repository.deleted_at).is_(None))
        .order_by(col(Repository.full_name))
    )
    return [
        Care(name, one.source_url, one.is_pinned, int(size), str(why), _shown_to(session, one))
        for name, one, size, why in rows.all()
    ]


def pin(session: Session, caller: Caller, repo_id: str, *, pinned: bool) -> None:
    """Keep a mirror's bytes whatever the quota, or no longer. Raises as `listing`, RepoNotFound, InvalidRequest."""
    row = _mirror(session, caller, repo_id)
    row.is_pinned = pinned
    session.add(row)
    audit.record(session, caller, "mirror.pin" if pinned else "mirror.unpin", row.repository_id, repo_id)


def refresh(session: Session, hub: Hub, caller: Caller, repo_id: str) -> None:
    """Have the branches and tags of a mirror looked up at its next read, or a name that is not here asked for again.

    Raises as `pin`.
    """
    require_admin(caller)
    mirror_missing.forget(hub, repo_id)
    if session.get(RepositoryName, repo_id.casefold()) is None:
        return
    row = _mirror(session, caller, repo_id)
    session.execute(delete(MirrorCheck).where(col(MirrorCheck.repository_id) == row.repository_id))
    proofs = update(MirrorAccess).where(col(MirrorAccess.repository_id) == row.repository_id)
    session.execute(proofs.values(proven_at=NEVER))


def evict(hub: Hub, caller: Caller, repo_id: str) -> int:
    """How many large files of a mirror were let go of, to come again when asked for; not those of the last hour.

    Raises as `pin`.
    """

    def begin(session: Session) -> list[MirrorBlob]:
        row = _mirror(session, caller, repo_id)
        audit.record(session, caller, "mirror.evict", row.repository_id, repo_id)
        return list(session.exec(select(MirrorBlob).where(MirrorBlob.repository_id == row.repository_id)))

    return sum(mirror_files.let_go(hub, one.repository_id, one.digest) for one in hub.db.transact(begin))


def _shown_to(session: Session, mirror: Mirror) -> tuple[str, ...] | None:
    if mirror.organisation_id is None:
        return None
    names = select(Account.name).join(MirrorAccess, col(MirrorAccess.organisation_id) == col(Account.id))
    return tuple(session.exec(names.where(MirrorAccess.repository_id == mirror.repository_id).order_by(Account.name)))


def _mirror(session: Session, caller: Caller, repo_id: str) -> Mirror:
    require_admin(caller)
    repo = repos.find(session, caller, repo_id)
    row = session.get(Mirror, repo.id)
    if row is None:
        raise InvalidRequest(f"{repo_id}: no mirror, but a repository of this hub")
    return row
