"""Jobs as their owner sees them."""

from datetime import datetime
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Job
from adapterhub.hub.errors import Forbidden, InvalidRequest, JobNotFound
from adapterhub.hub.jobs.queue import STATES, UNFINISHED
from adapterhub.hub.services.access import FINE_GRAINED, Caller, require_jobs

MAX_LISTED = 1000


def get(hub: Hub, caller: Caller, job_id: str) -> Job:
    """The job, for its owner and for administrators. Raises JobNotFound, also for somebody else's.

    A fine-grained token sees the jobs that it asked for itself: others may tell of repositories that it does not reach.
    """
    job = hub.jobs.get(job_id)
    if not caller.is_admin and (caller.account_id is None or job.owner_id != caller.account_id):
        raise JobNotFound(f"{job_id}: no such job")
    if not _asked_for(caller, job):
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
    found = hub.jobs.list(owner_id=owner_id, state=state, limit=max(1, min(limit, MAX_LISTED)))
    return [job for job in found if _asked_for(caller, job)]


def cancel(hub: Hub, caller: Caller, job_id: str) -> Job:
    """The job, asked to stop. Raises JobNotFound, NotAuthenticated, Forbidden."""
    job = get(hub, caller, job_id)
    require_jobs(caller)
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
    power = job.payload
    if power.get("scopes") is not None:
        scopes = frozenset((str(permission), str(entity)) for permission, entity in power["scopes"])
        return Caller(account.id, account.name, False, None, FINE_GRAINED, scopes, bool(power.get("reads_gated")))
    is_admin = account.is_admin and bool(power.get("as_admin"))
    return Caller(account.id, account.name, is_admin, token_role="admin" if is_admin else "write")


def power_of(caller: Caller) -> dict[str, Any]:
    """What a job's payload keeps of the power of the token that asked for it; `caller_of` gives it back."""
    if caller.token_role != FINE_GRAINED:
        return {"as_admin": caller.is_admin}
    return {"scopes": sorted(caller.scopes), "reads_gated": caller.reads_gated, "token_id": caller.token_id}


def asker(caller: Caller) -> str:
    """Who asks, for a job's key: only who may watch a job may be given it in place of an equal one."""
    return str(caller.token_id if caller.token_role == FINE_GRAINED else caller.account_id)


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


def _asked_for(caller: Caller, job: Job) -> bool:
    return caller.token_role != FINE_GRAINED or job.payload.get("token_id") == caller.token_id


def _text(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
