"""Runs jobs in the calling thread: for tests, and for tools that want a job's result now."""

import threading
from collections.abc import Mapping

from adapterhub.hub.db.tables import new_id
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.jobs.runner import Handler, run


class InlineExecutor:
    """Runs what waits in `queue` by `handlers`, one job after another."""

    def __init__(self, queue: JobQueue, handlers: Mapping[str, Handler]) -> None:
        self._queue = queue
        self._handlers = handlers
        self._worker = f"inline-{new_id()[:8]}"

    def drain(self) -> int:
        """Run jobs until none waits; how many were run."""
        count = 0
        while job := self._queue.lease(self._worker):
            run(self._queue, job, self._handlers, threading.Event())
            count += 1
        return count
