"""The queue of jobs: rows of the database, leased to workers for a while, with a fence against workers thought dead.

A lease runs out unless it is renewed; the job is then leased again. Each lease raises the job's fence, and every write
of a worker names the fence it holds, so what a late worker says about a job that was given to another is refused.
SQLite and PostgreSQL alike: the candidate row is locked where rows can be locked (SKIP LOCKED); SQLite has one writer.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, and_, or_, update
from sqlmodel import Session, col, select

from adapterhub.hub.db.engine import Database
from adapterhub.hub.db.tables import Job, now
from adapterhub.hub.errors import JobNotFound, LeaseLost

LEASE_S = 15.0
"""Seconds until a lease runs out."""
HEARTBEAT_S = 3.0
"""Seconds between two renewals: four may fail before the lease is lost."""

UNFINISHED = ("queued", "running")
STATES = (*UNFINISHED, "succeeded", "failed", "cancelled")

T = TypeVar("T")


class JobQueue:
    """Jobs and their leases. Thread-safe; every method is one short transaction and may raise DatabaseBusy.

    The jobs given back are copies: changing one changes nothing.
    """

    def __init__(self, db: Database, *, lease_s: float = LEASE_S, clock: Callable[[], datetime] = now) -> None:
        self._db = db
        self._lease = timedelta(seconds=lease_s)
        self._clock = clock

    def submit(
        self, kind: str, payload: Mapping[str, Any], *, key: str | None = None, owner_id: str | None = None
    ) -> Job:
        """The unfinished job of that kind and key, else a queued job with `payload`.

        A thousand who ask for the same thing at once thus wait for one job. key None makes a job of its own.
        """
        return self._db.transact(lambda session: self.submit_in(session, kind, payload, key=key, owner_id=owner_id))

    def submit_in(
        self,
        session: Session,
        kind: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        owner_id: str | None = None,
    ) -> Job:
        """As `submit`, inside a transaction of `Database.transact`: the job is there when that is committed, or never.

        Another process may insert the job of this key between the look and the insert; `transact` then looks again.
        """
        if key is not None:
            same = select(Job).where(Job.kind == kind, Job.key == key, col(Job.state).in_(UNFINISHED))
            if job := session.exec(same).first():
                return _copy(session, job)
        job = Job(kind=kind, key=key, owner_id=owner_id, payload=dict(payload), created_at=self._clock())
        session.add(job)
        return _copy(session, job)

    def lease(self, worker: str) -> Job | None:
        """The oldest job that waits or whose lease ran out, now leased to `worker`; None when there is none.

        A job whose workers died `max_attempts` times fails here, and one whose cancellation its worker did not live to
        see is cancelled, so that neither runs again.
        """
        with self._db.read() as session:
            if session.exec(select(Job.id).where(self._leasable()).limit(1)).first() is None:
                return None
        return self._db.transact(lambda session: self._lease_in(session, worker))

    def _leasable(self) -> ColumnElement[bool]:
        expired = and_(col(Job.state) == "running", col(Job.lease_until) <= self._clock())
        is_due = or_(col(Job.not_before).is_(None), col(Job.not_before) <= self._clock())
        return or_(and_(col(Job.state) == "queued", is_due), expired)

    def _lease_in(self, session: Session, worker: str) -> Job | None:
        oldest = (
            select(Job)
            .where(self._leasable())
            .order_by(col(Job.created_at), col(Job.id))
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        while job := session.exec(oldest).first():
            if job.cancel_requested:
                self._end(job, "cancelled")
            elif job.attempts >= job.max_attempts:
                self._end(job, "failed")
                job.error = {
                    "code": "worker_died",
                    "message": f"the worker process died {job.attempts} times while it ran this job; "
                    "it may need more memory than there is",
                }
            else:
                self._take(job, worker)
                return _copy(session, job)
            session.add(job)
            session.flush()
        return None

    def _take(self, job: Job, worker: str) -> None:
        at = self._clock()
        job.state, job.worker, job.lease_until = "running", worker, at + self._lease
        job.fence += 1
        job.attempts += 1
        job.started_at = job.started_at or at

    def _end(self, job: Job, state: str) -> None:
        job.state, job.finished_at, job.lease_until = state, self._clock(), None

    def heartbeat(self, job_id: str, fence: int) -> bool:
        """Renew the lease; true when somebody asked for the job to be cancelled. Raises LeaseLost."""

        def renew(session: Session) -> bool:
            self._write(session, job_id, fence, lease_until=self._clock() + self._lease)
            return bool(session.exec(select(Job.cancel_requested).where(Job.id == job_id)).one())

        return self._db.transact(renew)

    def progress(self, job_id: str, fence: int, progress: Mapping[str, Any]) -> None:
        """Replace the job's progress. Raises LeaseLost."""
        self._db.transact(lambda session: self._write(session, job_id, fence, progress=dict(progress)))

    def finish(self, job_id: str, fence: int, result: Mapping[str, Any]) -> None:
        """End the job well. Raises LeaseLost."""
        self._finish(job_id, fence, "succeeded", result=dict(result))

    def fail(self, job_id: str, fence: int, error: Mapping[str, Any], *, retry: bool = False) -> None:
        """End the job badly or, with `retry`, queue it again while it has attempts left. Raises LeaseLost."""

        def write(session: Session) -> None:
            job = session.exec(select(Job).where(Job.id == job_id)).one()
            if retry and job.attempts < job.max_attempts:
                self._write(session, job_id, fence, state="queued", lease_until=None, error=dict(error))
            else:
                self._write(session, job_id, fence, **self._ended("failed"), error=dict(error))

        self._db.transact(write)

    def cancelled(self, job_id: str, fence: int) -> None:
        """End the job as cancelled, by the worker that held it. Raises LeaseLost."""
        self._finish(job_id, fence, "cancelled")

    def give_back(self, job_id: str, fence: int) -> None:
        """Queue the job again without counting this attempt, since the worker has to stop. Raises LeaseLost."""
        self._db.transact(
            lambda session: self._write(
                session, job_id, fence, state="queued", lease_until=None, attempts=Job.attempts - 1
            )
        )

    def release(self, worker: str) -> None:
        """End the leases of a worker that is known to be dead, so that its job waits no longer than needed."""
        held = update(Job).where(col(Job.worker) == worker, col(Job.state) == "running")
        self._db.transact(lambda session: session.execute(held.values(lease_until=self._clock())))

    def cancel(self, job_id: str) -> Job:
        """The job, cancelled at once when it waits, else soon by its worker; one that ended stays as it ended.

        Raises JobNotFound.
        """

        def request(session: Session) -> Job:
            job = session.exec(select(Job).where(Job.id == job_id).with_for_update()).first()
            if job is None:
                raise JobNotFound(f"{job_id}: no such job")
            if job.state == "queued":
                self._end(job, "cancelled")
            if job.state == "running":
                job.cancel_requested = True
            session.add(job)
            return _copy(session, job)

        return self._db.transact(request)

    def _finish(self, job_id: str, fence: int, state: str, **values: Any) -> None:
        self._db.transact(lambda session: self._write(session, job_id, fence, **self._ended(state), **values))

    def _ended(self, state: str) -> dict[str, Any]:
        return {"state": state, "finished_at": self._clock(), "lease_until": None}

    def _write(self, session: Session, job_id: str, fence: int, **values: Any) -> None:
        held = update(Job).where(col(Job.id) == job_id, col(Job.fence) == fence, col(Job.state) == "running")
        if session.execute(held.values(**values)).rowcount != 1:  # type: ignore[attr-defined]  # of CursorResult
            raise LeaseLost(job_id, fence)

    def get(self, job_id: str) -> Job:
        """The job. Raises JobNotFound."""
        with self._db.read() as session:
            job = session.get(Job, job_id)
            if job is None:
                raise JobNotFound(f"{job_id}: no such job")
            return _copy(session, job)

    def latest(self, kind: str, key: str) -> Job | None:
        """The newest job of that kind and key, whatever its state."""
        of_key = select(Job).where(Job.kind == kind, Job.key == key)
        with self._db.read() as session:
            job = session.exec(of_key.order_by(col(Job.created_at).desc()).limit(1)).first()
            return _copy(session, job) if job else None

    def list(self, *, owner_id: str | None = None, state: str | None = None, limit: int = 100) -> list[Job]:
        """Up to `limit` jobs, newest first; of one owner and in one state where these are given."""
        wanted = select(Job).order_by(col(Job.created_at).desc(), col(Job.id)).limit(limit)
        if owner_id is not None:
            wanted = wanted.where(Job.owner_id == owner_id)
        if state is not None:
            wanted = wanted.where(Job.state == state)
        with self._db.read() as session:
            return [_copy(session, job) for job in session.exec(wanted)]


def _copy(session: Session, job: Job) -> Job:
    session.flush()
    session.refresh(job)
    session.expunge(job)
    return job
