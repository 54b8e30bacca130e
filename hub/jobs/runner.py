"""One leased job, run to its end: heartbeats while it works, its result or its error into the queue."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.errors import AdapterHubError
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import DatabaseBusy, LeaseLost, Unavailable, code_of
from adapterhub.hub.jobs.queue import HEARTBEAT_S, JobQueue
from adapterhub.merging.errors import Cancelled
from adapterhub.storage.errors import StoreUnavailable

PROGRESS_EVERY_S = 0.2
"""Seconds between two writes of a job's progress."""

_log = structlog.get_logger()


class Report(Protocol):
    """What a handler tells of its work, and asks about it."""

    def progress(self, done: int, total: int, unit: str, message: str = "") -> None:
        """Show how far the work is; may be called as often as one likes."""

    def cancelled(self) -> bool:
        """Whether to stop: somebody cancelled the job, its lease is lost, or the worker has to end."""

    def hold(self) -> None:
        """Renew the lease at once; to be called before the work is published. Raises Cancelled or LeaseLost."""


Handler = Callable[[Job, Report], Mapping[str, Any]]
"""Does the work of one kind of job and gives its result, JSON values only. It may run twice without harm."""


def run(
    queue: JobQueue,
    job: Job,
    handlers: Mapping[str, Handler],
    stop: threading.Event,
    *,
    heartbeat_s: float = HEARTBEAT_S,
) -> None:
    """Run `job`, leased by the caller, and write how it ended; nothing when its lease was lost meanwhile.

    `stop` asks the handler to end early; the job is then queued again and the attempt not counted.
    """
    try:
        with _Lease(queue, job, stop, heartbeat_s) as lease:
            _work(queue, job, handlers, lease, stop)
    except LeaseLost as lost:
        _log.warning("job.lease_lost", job=job.id, kind=job.kind, fence=lost.fence)


def _work(queue: JobQueue, job: Job, handlers: Mapping[str, Handler], lease: "_Lease", stop: threading.Event) -> None:
    try:
        result = handlers[job.kind](job, lease)
    except Cancelled:
        if stop.is_set() and not lease.cancel_requested():
            queue.give_back(job.id, job.fence)
        else:
            queue.cancelled(job.id, job.fence)
    except LeaseLost:
        raise
    except AdapterHubError as error:
        retry = isinstance(error, Unavailable | StoreUnavailable)
        queue.fail(job.id, job.fence, {"code": code_of(error), "message": str(error)}, retry=retry)
    except Exception as error:  # noqa: BLE001
        # the job's outermost edge: whatever a handler raises ends this job and no other
        _log.exception("job.crashed", job=job.id, kind=job.kind)
        message = f"{type(error).__name__}: {error}; this is a fault of the service, its log has the traceback"
        queue.fail(job.id, job.fence, {"code": "internal_error", "message": message})
    else:
        queue.finish(job.id, job.fence, result)


class _Lease:
    """The Report of a leased job; renews the lease from a thread of its own while the block runs."""

    def __init__(self, queue: JobQueue, job: Job, stop: threading.Event, heartbeat_s: float) -> None:
        self._queue, self._job, self._stop, self._heartbeat_s = queue, job, stop, heartbeat_s
        self._ended, self._cancel, self._lost = threading.Event(), threading.Event(), threading.Event()
        self._next_write = 0.0
        self._thread = threading.Thread(target=self._beat, name=f"lease-{job.id[:8]}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                self._renew()
            except LeaseLost:
                self._lost.set()
                return
            except (DatabaseBusy, SQLAlchemyError) as error:
                # the next beat may get through; the lease outlives four that do not
                _log.warning("job.heartbeat_failed", job=self._job.id, error=str(error))

    def _renew(self) -> None:
        if self._queue.heartbeat(self._job.id, self._job.fence):
            self._cancel.set()

    def progress(self, done: int, total: int, unit: str, message: str = "") -> None:
        if time.monotonic() < self._next_write:
            return
        self._next_write = time.monotonic() + PROGRESS_EVERY_S
        shown = {"done": done, "total": total, "unit": unit, "message": message}
        self._queue.progress(self._job.id, self._job.fence, shown)

    def cancelled(self) -> bool:
        return self._cancel.is_set() or self._lost.is_set() or self._stop.is_set()

    def cancel_requested(self) -> bool:
        """Whether somebody asked for the job to end, as opposed to the worker having to."""
        return self._cancel.is_set()

    def hold(self) -> None:
        self._renew()
        if self.cancelled():
            raise Cancelled(f"job {self._job.id} was asked to stop; nothing was published")
