"""Jobs as their owner sees them."""

from datetime import datetime
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Job
from adapterhub.hub.errors import Forbidden, InvalidRequest, JobNotFound
from adapterhub.hub.jobs.queue import STATES, UNFINISHED
from adapterhub.hub.services.access import Caller, require_writing_token

MAX_LISTED = 1000


def get(hub: Hub, caller: Caller, job_id: str) -> Job:
    """The job, for its owner and for administrators. Raises JobNotFound, also for somebody else's."""
    job = hub.jobs.get(job_id)
    if not caller.is_admin and (caller.account_id is None or job.owner_id != caller.account_id):
        raise JobNotFound(f"{job_id}: no such job")
    return job


def list_jobs(hub: Hub, caller: Caller, *, state: str | None = None, limit: int = 100) -> list[Job]:
    """Up to `limit` jobs of the caller, newest first; of everybody for an administrator; none for the anonymous.

    Raises InvalidRequest for an unknown state.
    """
    if state is not None and state not in STATES:
        raise InvalidRequest(f"state {state!r}: one of {', '.join(STATES)}")
    if caller.is_anonymous:
        return []
    owner_id = None if caller.is_admin else caller.account_id
    return hub.jobs.list(owner_id=owner_id, state=state, limit=max(1, min(limit, MAX_LISTED)))


def cancel(hub: Hub, caller: Caller, job_id: str) -> Job:
    """The job, asked to stop. Raises JobNotFound, NotAuthenticated, Forbidden."""
    job = get(hub, caller, job_id)
    require_writing_token(caller)
    return hub.jobs.cancel(job.id)


def is_finished(job: Job) -> bool:
    """Whether nothing will change any more."""
    return job.state not in UNFINISHED


def caller_of(session: Session, job: Job) -> Caller:
    """Who a job works for: its owner as they stand now, with the power that their token had when they asked.

    Raises Forbidden when the account is gone or disabled meanwhile.
    """
    account = session.get(Account, job.owner_id) if job.owner_id else None
    if account is None or account.disabled_at is not None:
        raise Forbidden(f"job {job.id}: the account that asked for it is disabled")
    is_admin = account.is_admin and bool(job.payload.get("as_admin"))
    return Caller(account.id, account.name, is_admin, token_role="admin" if is_admin else "write")


def view(job: Job) -> dict[str, Any]:
    """The job's JSON, as REST, its event stream and the pages show it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "progress": {"done": 0, "total": 0, "unit": "", "message": ""} | job.progress,
        "result": job.result,
        "error": job.error,
        "created_at": _text(job.created_at),
        "started_at": _text(job.started_at),
        "finished_at": _text(job.finished_at),
        "attempts": job.attempts,
    }


def _text(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
