"""Old xorbs are dropped: their bytes are in the files already, and only clients' memories still point at them.

A client remembers for three weeks which chunks it sent to which address, and never sends them again there. So the
address changes first: raising the epoch of a repository makes every client begin with an empty memory. The xorbs of the
old address go once no upload that began under it can still be running.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import chunks
from adapterhub.hub.db.tables import Blob, BlobOwner, Job, XetScope, Xorb, now
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import audit
from adapterhub.hub.services.access import Caller, require_admin

KIND = "xet-sweep"
KEY = "all"
"""One sweep at a time, for the whole service."""

UPLOAD = timedelta(days=1)
"""How long an upload may take that began just before its address changed."""

EVERY = timedelta(days=1)
"""How often a sweep is due."""

_BATCH = 50
"""Blobs removed in one transaction: it holds the one write lock of SQLite while the files go."""


@dataclass(frozen=True)
class Swept:
    """What a sweep did. repositories: those whose clients begin anew; xorbs: dropped; size_bytes: of blobs removed."""

    repositories: int
    xorbs: int
    size_bytes: int


def request(hub: Hub, caller: Caller) -> Job:
    """The job that sweeps, or the one that does so already. For administrators. Raises NotAuthenticated, Forbidden."""
    require_admin(caller)

    def submit(session: Session) -> Job:
        audit.record(session, caller, "storage.sweep", None, "xorbs")
        return hub.jobs.submit_in(session, KIND, {}, key=KEY, owner_id=caller.account_id)

    return hub.db.transact(submit)


def submit_due(hub: Hub) -> None:
    """Queue a sweep when there are xorbs old enough and the last one is EVERY ago, or there was none."""
    at = now()
    with hub.db.read() as session:
        old = col(Xorb.created_at) <= at - timedelta(days=hub.settings.xet_retention_days)
        if session.exec(select(Xorb.digest).where(old).limit(1)).first() is None:
            return
    last = hub.jobs.latest(KIND, KEY)
    if last is None or last.created_at <= at - EVERY:
        hub.jobs.submit(KIND, {}, key=KEY)


def run(hub: Hub, job: Job, report: Report) -> Mapping[str, Any]:
    """Sweep as the settings say; the job's result."""
    report.progress(0, 1, "sweep", "looking for old xorbs")
    done = sweep(hub, timedelta(days=hub.settings.xet_retention_days), now())
    return {"repositories": done.repositories, "xorbs": done.xorbs, "size_bytes": done.size_bytes}


def sweep(hub: Hub, retention: timedelta, at: datetime, *, upload: timedelta = UPLOAD) -> Swept:
    """Raise the epoch of repositories that hold a xorb older than `retention`, and drop what older epochs left.

    at: the present time. upload: an epoch raised more recently than this keeps its xorbs until the next sweep. May be
    interrupted anywhere: what is left over then is garbage that nothing points at.
    """
    repositories = hub.db.transact(lambda session: _raise_epochs(session, at - retention, at))
    digests = hub.db.transact(lambda session: _drop_rows(session, at - upload))
    size_bytes = sum(
        hub.db.transact(lambda session, some=some: _remove_orphans(hub, session, some))  # type: ignore[misc]
        for some in chunks(sorted(set(digests)), _BATCH)
    )
    return Swept(repositories, len(digests), size_bytes)


def _raise_epochs(session: Session, oldest: datetime, at: datetime) -> int:
    """The number of repositories whose present epoch holds a xorb from before `oldest`, each now one epoch further."""
    present = (col(Xorb.repository_id) == col(XetScope.repository_id)) & (col(Xorb.epoch) == col(XetScope.epoch))
    stale = select(XetScope).where(exists().where(present, col(Xorb.created_at) <= oldest)).with_for_update()
    found = session.exec(stale).all()
    for scope in found:
        scope.epoch += 1
        scope.raised_at = at
        session.add(scope)
    return len(found)


def _drop_rows(session: Session, raised_before: datetime) -> list[str]:
    """The digests of the xorbs whose epoch ended before that time; their rows are gone."""
    ended = exists().where(
        col(XetScope.repository_id) == col(Xorb.repository_id),
        col(XetScope.epoch) > col(Xorb.epoch),
        col(XetScope.raised_at) <= raised_before,
    )
    digests = list(session.exec(select(Xorb.digest).where(ended)))
    session.execute(delete(Xorb).where(ended))
    return digests


def _remove_orphans(hub: Hub, session: Session, digests: Sequence[str]) -> int:
    """The bytes of those blobs that are no repository's file and no other xorb, removed with their rows.

    The bytes go inside the transaction that holds their rows: whoever stores the same bytes meanwhile waits for it,
    then looks, and has them sent again (`xet.put_xorb`).
    """
    locked = session.exec(select(Blob).where(col(Blob.digest).in_(digests)).with_for_update()).all()
    used = _used(session, digests)
    orphans = [blob for blob in locked if blob.digest not in used]
    for blob in orphans:
        session.delete(blob)
    session.flush()
    for blob in orphans:
        hub.store.delete(blob.digest)
    return sum(blob.size_bytes for blob in orphans)


def _used(session: Session, digests: Sequence[str]) -> set[str]:
    owned = session.exec(select(BlobOwner.digest).where(col(BlobOwner.digest).in_(digests)))
    xorbs = session.exec(select(Xorb.digest).where(col(Xorb.digest).in_(digests)))
    return {*owned, *xorbs}
