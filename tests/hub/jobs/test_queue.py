"""Leases and fences: a job runs to its end once, whatever dies or wakes up late meanwhile."""

import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlmodel import SQLModel

from adapterhub.hub.db.engine import Database, migrate
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import JobNotFound, LeaseLost
from adapterhub.hub.jobs.queue import LEASE_S, JobQueue


class Clock:
    """A clock that moves a millisecond a look, and further when told."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.advance(0.001)
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(db: Database, clock: Clock) -> JobQueue:
    return JobQueue(db, clock=clock)


def leased(queue: JobQueue, worker: str = "one") -> Job:
    job = queue.lease(worker)
    assert job is not None
    return job


def test_jobs_of_one_kind_and_key_are_one_job_while_unfinished(queue: JobQueue) -> None:
    first = queue.submit("merge", {"n": 1}, key="same")
    assert queue.submit("merge", {"n": 2}, key="same").id == first.id
    assert queue.submit("port", {}, key="same").id != first.id
    job = leased(queue)
    assert queue.submit("merge", {}, key="same").id == first.id
    queue.finish(job.id, job.fence, {"ok": True})
    assert queue.submit("merge", {}, key="same").id != first.id


def test_jobs_without_a_key_are_jobs_of_their_own(queue: JobQueue) -> None:
    assert queue.submit("merge", {}).id != queue.submit("merge", {}).id


def test_a_thousand_equal_requests_from_many_threads_make_one_job(db: Database) -> None:
    ids: list[str] = []
    queue = JobQueue(db)
    threads = [threading.Thread(target=lambda: ids.append(queue.submit("merge", {}, key="k").id)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 12
    assert len(set(ids)) == 1


def test_the_oldest_job_is_leased_first(queue: JobQueue, clock: Clock) -> None:
    first = queue.submit("merge", {"n": 1})
    clock.advance(1)
    second = queue.submit("merge", {"n": 2})
    assert [leased(queue).id, leased(queue).id] == [first.id, second.id]
    assert queue.lease("three") is None


def test_two_workers_never_hold_the_same_lease(db: Database) -> None:
    queue = JobQueue(db)
    for n in range(20):
        queue.submit("merge", {"n": n})
    taken: list[tuple[str, int]] = []
    start = threading.Barrier(4)

    def work(name: str) -> None:
        start.wait()
        while job := queue.lease(name):
            taken.append((job.id, job.fence))

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 20


def test_a_lease_that_ran_out_is_given_to_another_and_the_first_worker_is_refused(
    queue: JobQueue, clock: Clock
) -> None:
    queue.submit("merge", {})
    late = leased(queue, "late")
    clock.advance(LEASE_S)
    newer = leased(queue, "newer")
    assert newer.id == late.id
    assert newer.fence == late.fence + 1
    for write in (
        lambda: queue.heartbeat(late.id, late.fence),
        lambda: queue.progress(late.id, late.fence, {}),
        lambda: queue.finish(late.id, late.fence, {}),
        lambda: queue.fail(late.id, late.fence, {}),
        lambda: queue.fail(late.id, late.fence, {}, retry=True),
        lambda: queue.cancelled(late.id, late.fence),
        lambda: queue.give_back(late.id, late.fence),
    ):
        with pytest.raises(LeaseLost):
            write()
    queue.finish(newer.id, newer.fence, {"by": "newer"})
    assert queue.get(newer.id).result == {"by": "newer"}


def test_a_heartbeat_keeps_the_lease(queue: JobQueue, clock: Clock) -> None:
    queue.submit("merge", {})
    job = leased(queue)
    for _ in range(5):
        clock.advance(LEASE_S * 0.9)
        assert queue.heartbeat(job.id, job.fence) is False
        assert queue.lease("other") is None


def test_the_job_of_a_dead_worker_is_leased_again_at_once(queue: JobQueue) -> None:
    queue.submit("merge", {})
    job = leased(queue, "dead")
    queue.release("dead")
    assert leased(queue, "alive").id == job.id


def test_a_job_whose_workers_keep_dying_fails_in_the_end(queue: JobQueue) -> None:
    job = queue.submit("merge", {})
    for n in range(job.max_attempts):
        leased(queue, f"w{n}")
        queue.release(f"w{n}")
    assert queue.lease("w9") is None
    ended = queue.get(job.id)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["code"] == "worker_died"


def test_a_job_given_back_keeps_its_attempts(queue: JobQueue) -> None:
    queue.submit("merge", {})
    job = leased(queue)
    queue.give_back(job.id, job.fence)
    again = leased(queue)
    assert (again.id, again.attempts) == (job.id, 1)


def test_a_failure_that_may_pass_is_tried_again_until_the_attempts_are_used_up(queue: JobQueue) -> None:
    job = queue.submit("merge", {})
    for attempt in range(1, job.max_attempts + 1):
        held = leased(queue)
        assert held.attempts == attempt
        queue.fail(held.id, held.fence, {"code": "store_unavailable"}, retry=True)
    assert queue.get(job.id).state == "failed"
    assert queue.lease("one") is None


def test_a_lasting_failure_is_not_tried_again(queue: JobQueue) -> None:
    queue.submit("merge", {})
    job = leased(queue)
    queue.fail(job.id, job.fence, {"code": "shape_mismatch", "message": "no"})
    assert queue.get(job.id).state == "failed"
    assert queue.lease("one") is None


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_by_its_worker(queue: JobQueue) -> None:
    waiting = queue.submit("merge", {})
    assert queue.cancel(waiting.id).state == "cancelled"
    queue.submit("merge", {})
    running = leased(queue)
    assert queue.cancel(running.id).state == "running"
    assert queue.heartbeat(running.id, running.fence) is True
    queue.cancelled(running.id, running.fence)
    assert queue.cancel(running.id).state == "cancelled"


def test_a_cancelled_job_whose_worker_died_does_not_run_again(queue: JobQueue) -> None:
    queue.submit("merge", {})
    job = leased(queue)
    queue.cancel(job.id)
    queue.release("one")
    assert queue.lease("two") is None
    assert queue.get(job.id).state == "cancelled"


def test_a_job_that_ended_stays_as_it_ended(queue: JobQueue) -> None:
    queue.submit("merge", {})
    job = leased(queue)
    queue.finish(job.id, job.fence, {"n": 1})
    assert queue.cancel(job.id).state == "succeeded"
    with pytest.raises(LeaseLost):
        queue.finish(job.id, job.fence, {"n": 2})
    assert queue.get(job.id).result == {"n": 1}


def test_an_unknown_job_is_named(queue: JobQueue) -> None:
    with pytest.raises(JobNotFound, match="nowhere"):
        queue.get("nowhere")
    with pytest.raises(JobNotFound, match="nowhere"):
        queue.cancel("nowhere")


def test_jobs_are_listed_newest_first_by_state(queue: JobQueue, clock: Clock) -> None:
    first = queue.submit("merge", {})
    clock.advance(1)
    second = queue.submit("port", {})
    assert [job.id for job in queue.list()] == [second.id, first.id]
    leased(queue)
    assert [job.id for job in queue.list(state="queued")] == [second.id]
    assert [job.id for job in queue.list(limit=1)] == [second.id]


class Leases(RuleBasedStateMachine):
    """Workers lease, die, wake up late and write, in any order; what a job is must follow from its newest lease."""

    held = Bundle("held")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.db = Database(f"sqlite:///{self.folder.name}/jobs.db")
        SQLModel.metadata.create_all(self.db.engine)
        self.clock = Clock()
        self.queue = JobQueue(self.db, clock=self.clock)
        self.fences: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.leases: set[tuple[str, int]] = set()

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.folder.cleanup()

    @rule(key=st.sampled_from(["a", "b", None]))
    def submit(self, key: str | None) -> None:
        job = self.queue.submit("merge", {}, key=key)
        assert job.id not in self.ended

    @rule(target=held, worker=st.sampled_from(["x", "y", "z"]))
    def lease(self, worker: str) -> Job | None:
        job = self.queue.lease(worker)
        if job is not None:
            assert (job.id, job.fence) not in self.leases
            assert job.id not in self.ended
            assert job.attempts <= job.max_attempts
            self.leases.add((job.id, job.fence))
            self.fences[job.id] = job.fence
        return job

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(worker=st.sampled_from(["x", "y", "z"]))
    def die(self, worker: str) -> None:
        self.queue.release(worker)

    @rule(job=held)
    def cancel(self, job: Job | None) -> None:
        if job is not None:
            self.queue.cancel(job.id)

    @rule(job=held)
    def beat(self, job: Job | None) -> None:
        if job is not None:
            self._fenced(job, lambda: self.queue.heartbeat(job.id, job.fence))

    @rule(job=consumes(held), how=st.sampled_from(["finish", "fail", "retry", "give_back", "cancelled"]))
    def end(self, job: Job | None, how: str) -> None:
        if job is None:
            return
        writes = {
            "finish": lambda: self.queue.finish(job.id, job.fence, {"fence": job.fence}),
            "fail": lambda: self.queue.fail(job.id, job.fence, {}),
            "retry": lambda: self.queue.fail(job.id, job.fence, {}, retry=True),
            "give_back": lambda: self.queue.give_back(job.id, job.fence),
            "cancelled": lambda: self.queue.cancelled(job.id, job.fence),
        }
        self._fenced(job, writes[how])

    def _fenced(self, job: Job, write: object) -> None:
        before = self.queue.get(job.id)
        newest = before.state == "running" and before.fence == job.fence
        try:
            write()  # type: ignore[operator]
        except LeaseLost:
            assert not newest
        else:
            assert newest

    @invariant()
    def ended_jobs_never_change(self) -> None:
        if not hasattr(self, "queue"):
            return
        for job in self.queue.list(limit=1000):
            if job.id in self.ended:
                assert job.state == self.ended[job.id]
            if job.finished_at is not None:
                self.ended[job.id] = job.state
                assert job.lease_until is None
            assert (job.state == "running") == (job.lease_until is not None)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=12, stateful_step_count=30, suppress_health_check=list(HealthCheck))
