"""Runs jobs in child processes of the web process: starts them, notices their death, starts them again.

A child that dies takes only its own job with it, and that job is leased again at once. A child ends by itself when the
web process is gone: its standard input then closes.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.hub.db.tables import new_id
from adapterhub.hub.errors import DatabaseBusy
from adapterhub.hub.jobs.queue import JobQueue

GRACE_S = 10.0
"""Seconds that a child has to give its job back before it is killed."""
BACKOFF_S = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
"""Pauses before a child is started again, after so many deaths in a row."""
HEALTHY_S = 30.0
"""A child that lived so long starts the row of deaths anew."""

_log = structlog.get_logger()


def worker_command(worker: str) -> list[str]:
    """The command line of the worker process that leases under the name `worker`."""
    return [sys.executable, "-m", "adapterhub.hub.worker", worker]


class ProcessExecutor:
    """Keeps `count` worker processes alive between `start` and `stop`, which belong to one event loop."""

    def __init__(
        self,
        queue: JobQueue,
        count: int,
        environment: Mapping[str, str],
        command: Callable[[str], Sequence[str]] = worker_command,
    ) -> None:
        self._queue = queue
        self._count = count
        self._environment = dict(environment)
        self._command = command
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that live now."""
        return [child.pid for child in self._children.values() if child.returncode is None]

    async def start(self) -> None:
        """Start supervising; the children come up meanwhile."""
        self._tasks = [asyncio.create_task(self._supervise(), name=f"worker-{n}") for n in range(self._count)]

    async def stop(self) -> None:
        """Ask the children to give their jobs back, wait up to GRACE_S, kill who is left. May be called repeatedly."""
        self._stopping.set()
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.terminate()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_S)
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.kill()
        await asyncio.gather(*self._tasks)
        self._tasks = []

    async def _supervise(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            try:
                await self._one_life()
            except (OSError, DatabaseBusy, SQLAlchemyError) as error:
                # no process to be had, or no database: the pause grows, and leases run out by themselves
                _log.warning("worker.not_supervised", error=str(error))
            lived_s = asyncio.get_running_loop().time() - began
            deaths = 0 if lived_s > HEALTHY_S else deaths + 1
            pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _one_life(self) -> None:
        worker = f"worker-{new_id()[:12]}"
        child = await asyncio.create_subprocess_exec(
            *self._command(worker),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            # a terminal's Ctrl-C is for the web process, which then asks its children to end
            start_new_session=True,
        )
        self._children[worker] = child
        try:
            if self._stopping.is_set():
                child.terminate()
            status = await child.wait()
        finally:
            del self._children[worker]
        if not self._stopping.is_set():
            _log.warning("worker.died", worker=worker, pid=child.pid, status=status)
        await asyncio.to_thread(self._queue.release, worker)
