"""One leased job, from its handler's point of view and from the queue's."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import EngineUnavailable, LeaseLost
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.jobs.runner import Handler, Report, run
from adapterhub.merging.errors import Cancelled, UnknownName


def run_one(queue: JobQueue, handler: Handler, stop: threading.Event | None = None, heartbeat_s: float = 0.01) -> Job:
    job = queue.submit("work", {"n": 7})
    leased = queue.lease("here")
    assert leased is not None
    run(queue, leased, {"work": handler}, stop or threading.Event(), heartbeat_s=heartbeat_s)
    return queue.get(job.id)


def test_what_the_handler_gives_back_is_the_result(queue: JobQueue) -> None:
    ended = run_one(queue, lambda job, report: {"double": job.payload["n"] * 2})
    assert (ended.state, ended.result) == ("succeeded", {"double": 14})
    assert ended.finished_at is not None


def test_a_domain_error_fails_the_job_with_its_code_and_text(queue: JobQueue) -> None:
    def refuse(job: Job, report: Report) -> Mapping[str, Any]:
        raise UnknownName("demo/x: no such repository")

    ended = run_one(queue, refuse)
    assert ended.state == "failed"
    assert ended.error == {"code": "unknown_name", "message": "demo/x: no such repository"}


def test_a_fault_of_the_service_fails_the_job_and_not_the_worker(queue: JobQueue) -> None:
    def crash(job: Job, report: Report) -> Mapping[str, Any]:
        raise ZeroDivisionError("oh")

    ended = run_one(queue, crash)
    assert ended.error is not None
    assert ended.error["code"] == "internal_error"
    assert "ZeroDivisionError: oh" in ended.error["message"]


def test_something_unavailable_queues_the_job_again(queue: JobQueue) -> None:
    def unavailable(job: Job, report: Report) -> Mapping[str, Any]:
        raise EngineUnavailable("later")

    assert run_one(queue, unavailable).state == "queued"


def test_progress_is_shown_while_the_handler_runs(queue: JobQueue) -> None:
    seen: list[dict[str, Any]] = []

    def work(job: Job, report: Report) -> Mapping[str, Any]:
        report.progress(3, 10, "tensors", "model.layers.0")
        seen.append(queue.get(job.id).progress)
        return {}

    run_one(queue, work)
    assert seen == [{"done": 3, "total": 10, "unit": "tensors", "message": "model.layers.0"}]


def test_a_cancelled_job_learns_of_it_by_its_heartbeat(queue: JobQueue) -> None:
    def work(job: Job, report: Report) -> Mapping[str, Any]:
        queue.cancel(job.id)
        while not report.cancelled():
            pass
        raise Cancelled("stopped")

    assert run_one(queue, work).state == "cancelled"


def test_a_worker_that_has_to_stop_gives_the_job_back(queue: JobQueue) -> None:
    stop = threading.Event()

    def work(job: Job, report: Report) -> Mapping[str, Any]:
        stop.set()
        assert report.cancelled()
        raise Cancelled("stopped")

    ended = run_one(queue, work, stop)
    assert (ended.state, ended.attempts) == ("queued", 0)


def test_a_worker_that_lost_its_lease_may_not_publish(queue: JobQueue) -> None:
    published = []

    def work(job: Job, report: Report) -> Mapping[str, Any]:
        queue.release("here")
        assert queue.lease("another") is not None
        with pytest.raises(LeaseLost):
            report.hold()
        report.hold()
        published.append(job.id)
        return {"by": "late"}

    ended = run_one(queue, work, heartbeat_s=60)  # no beat renews the lease between its end and the other's
    assert not published
    assert (ended.state, ended.worker, ended.result) == ("running", "another", None)


def test_holding_a_cancelled_job_stops_it_before_it_publishes(queue: JobQueue) -> None:
    def work(job: Job, report: Report) -> Mapping[str, Any]:
        queue.cancel(job.id)
        report.hold()
        return {}

    assert run_one(queue, work).state == "cancelled"


def test_the_inline_executor_runs_all_that_waits(queue: JobQueue) -> None:
    jobs = [queue.submit("work", {"n": n}) for n in range(3)]
    executor = InlineExecutor(queue, {"work": lambda job, report: {"n": job.payload["n"]}})
    assert executor.drain() == 3
    assert [queue.get(job.id).result for job in jobs] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert executor.drain() == 0
