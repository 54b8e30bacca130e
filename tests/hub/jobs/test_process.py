"""Worker processes: killed, asked to end, left behind; their jobs go on."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.hub.jobs.process import ProcessExecutor
from adapterhub.hub.jobs.queue import JobQueue

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("child.py")
PATIENCE_S = 40


def executor_of(queue: JobQueue, url: str, count: int = 1) -> ProcessExecutor:
    return ProcessExecutor(queue, count, os.environ, lambda worker: [sys.executable, str(CHILD), url, worker])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_killed_worker_is_replaced_and_its_job_succeeds(queue: JobQueue, database_url: str) -> None:
    async def scenario() -> None:
        executor = executor_of(queue, database_url)
        await executor.start()
        job = queue.submit("hang", {})
        await until(lambda: bool(queue.get(job.id).progress))
        [pid] = executor.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: queue.get(job.id).state == "succeeded")
        assert queue.get(job.id).result == {"attempt": 2}
        assert executor.pids != [pid]
        await executor.stop()

    asyncio.run(scenario())


def test_stopping_lets_the_running_job_give_its_lease_back(queue: JobQueue, database_url: str) -> None:
    async def scenario() -> None:
        executor = executor_of(queue, database_url)
        await executor.start()
        job = queue.submit("hang", {})
        await until(lambda: bool(queue.get(job.id).progress))
        await executor.stop()
        assert executor.pids == []
        given_back = queue.get(job.id)
        assert (given_back.state, given_back.attempts) == ("queued", 0)

    asyncio.run(scenario())


def test_two_workers_share_the_jobs(queue: JobQueue, database_url: str) -> None:
    async def scenario() -> None:
        executor = executor_of(queue, database_url, 2)
        jobs = [queue.submit("hang", {"at_once": True}) for _ in range(6)]
        await executor.start()
        await until(lambda: all(queue.get(job.id).state == "succeeded" for job in jobs))
        assert [queue.get(job.id).fence for job in jobs] == [1] * 6
        await executor.stop()

    asyncio.run(scenario())


def test_a_worker_ends_when_the_web_process_is_gone(queue: JobQueue, database_url: str) -> None:
    async def scenario() -> None:
        job = queue.submit("hang", {})
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), database_url, "orphan", stdin=asyncio.subprocess.PIPE
        )
        await until(lambda: bool(queue.get(job.id).progress))
        assert child.stdin is not None
        child.stdin.close()
        assert await asyncio.wait_for(child.wait(), PATIENCE_S) == 0
        assert queue.get(job.id).state == "queued"

    asyncio.run(scenario())


def test_a_worker_told_to_stop_ends_well_while_its_parent_lives(queue: JobQueue, database_url: str) -> None:
    async def scenario() -> None:
        job = queue.submit("hang", {})
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), database_url, "told", stdin=asyncio.subprocess.PIPE
        )
        await until(lambda: bool(queue.get(job.id).progress))
        child.terminate()
        assert await asyncio.wait_for(child.wait(), PATIENCE_S) == 0

    asyncio.run(scenario())
