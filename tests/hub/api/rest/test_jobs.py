"""Jobs over REST: seen by their owner, watched as events, cancelled."""

import json
import threading
from collections.abc import Iterator

from adapterhub.hub.api.rest import jobs as routes
from adapterhub.hub.db.tables import Job
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.jobs.runner import Report
from tests.hub.api.rest.conftest import Site


def submit(site: Site, owner: str = "maria", kind: str = "count") -> Job:
    return site.hub.jobs.submit(kind, {}, owner_id=site.caller(owner).account_id)


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    found: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            found[name] = value
        else:
            yield found
            found = {}


def test_a_job_is_shown_to_its_owner_and_to_administrators_only(site: Site) -> None:
    job = submit(site)
    shown = site.client().get(f"/api/jobs/{job.id}").json()
    assert shown["id"] == job.id
    assert (shown["kind"], shown["state"], shown["attempts"], shown["result"]) == ("count", "queued", 0, None)
    assert site.client("boss").get(f"/api/jobs/{job.id}").status_code == 200
    for name in ("stranger", None):
        refused = site.client(name).get(f"/api/jobs/{job.id}")
        assert refused.status_code == 404
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["x-error-code"] == "JobNotFound"
        assert refused.json()["code"] == "job_not_found"
        assert job.id in refused.json()["detail"]


def test_lists_hold_ones_own_jobs_by_state(site: Site) -> None:
    mine = submit(site)
    other = submit(site, "stranger")
    assert [job["id"] for job in site.client().get("/api/jobs").json()["items"]] == [mine.id]
    everybodys = site.client("boss").get("/api/jobs").json()["items"]
    assert {job["id"] for job in everybodys} == {mine.id, other.id}
    assert site.client().get("/api/jobs?state=running").json() == {"items": []}
    assert site.client(None).get("/api/jobs").json() == {"items": []}
    for query in ("state=asleep", "limit=0", "limit=1000000000", "limit=-1"):
        assert site.client().get(f"/api/jobs?{query}").status_code == 400


def test_a_waiting_job_is_cancelled(site: Site) -> None:
    job = submit(site)
    assert site.client("stranger").post(f"/api/jobs/{job.id}/cancel").status_code == 404
    assert site.client().post(f"/api/jobs/{job.id}/cancel").json()["state"] == "cancelled"
    assert site.client().post("/api/jobs/none/cancel").status_code == 404


def test_events_tell_each_change_and_end_with_done(site: Site) -> None:
    job = submit(site)
    watched = threading.Event()

    def count(job: Job, report: Report) -> dict[str, int]:
        report.progress(1, 2, "steps", "half")
        watched.wait(20)
        return {"counted": 2}

    worker = threading.Thread(target=InlineExecutor(site.hub.jobs, {"count": count}).drain)
    seen = []
    with site.client().stream("GET", f"/api/jobs/{job.id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for event in events(response.iter_lines()):
            shown = json.loads(event["data"])
            seen.append((event["event"], shown["state"]))
            if shown["state"] == "queued":
                worker.start()
            if shown["progress"]["message"] == "half":
                watched.set()
    worker.join()
    assert seen[0] == ("progress", "queued")
    assert ("progress", "running") in seen
    assert seen[-1] == ("done", "succeeded")
    assert shown["result"] == {"counted": 2}


def test_a_watcher_that_comes_back_is_not_told_again_what_it_saw(site: Site) -> None:
    job = submit(site)
    with site.client().stream("GET", f"/api/jobs/{job.id}/events") as response:
        first = next(events(response.iter_lines()))
    back = {"Last-Event-ID": first["id"]}
    with site.client().stream("GET", f"/api/jobs/{job.id}/events", headers=back) as response:
        site.hub.jobs.cancel(job.id)
        told = list(events(response.iter_lines()))
    assert [event["event"] for event in told] == ["done"]


def test_silence_is_filled_with_pings(site: Site, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(routes, "POLL_S", 0.01)
    monkeypatch.setattr(routes, "PING_S", 0.02)
    job = submit(site)
    with site.client().stream("GET", f"/api/jobs/{job.id}/events") as response:
        for line in response.iter_lines():
            if line == ": ping":
                break
        else:
            raise AssertionError("the stream ended without a ping")
    site.hub.jobs.cancel(job.id)


def test_nobody_watches_a_strangers_job(site: Site) -> None:
    assert site.client("stranger").get(f"/api/jobs/{submit(site).id}/events").status_code == 404
