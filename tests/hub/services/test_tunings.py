"""Searches as jobs: scored by the engine, ended and gone on with, and what is refused before they are queued."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.hub.api.rest.schemas import TuningRequest
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import InvalidRequest, OutboundRefused, TooLarge
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.jobs.runner import run as run_leased
from adapterhub.hub.services import recipes, repos, tunings
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.wiring import SPOOL_FOLDER
from adapterhub.hub.worker import handlers_of
from adapterhub.merging.errors import InvalidParameter, UnknownName
from tests.hub.serving import models

MakeUser = Callable[..., Caller]
TASK = [{"text": "the quick brown fox"}, {"text": "jumps over"}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    models.lora(models.llama(folder / "base"), folder / "code", seed=1)
    return folder


@pytest.fixture
def ann(hub: Hub, user: MakeUser, files: Path) -> Caller:
    ann = user("ann")
    (hub.settings.data / SPOOL_FOLDER).mkdir(exist_ok=True)
    for name in ("base", "code"):
        repos.create(hub, ann, f"ann/{name}")
        content = [AddRegular(one.name, one.read_bytes()) for one in (files / name).iterdir() if one.is_file()]
        commit(hub, ann, f"ann/{name}", "main", content, "push")
    return ann


def asked(**more: Any) -> dict[str, Any]:
    said = {"expression": "ann/base + 0.5*ann/code", "task": TASK, "evaluations": 6, **more}
    return TuningRequest(**said).model_dump(mode="json")


def finished(hub: Hub, job: Job) -> dict[str, Any]:
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    ended = hub.jobs.get(job.id)
    assert ended.error is None, ended.error
    assert ended.result is not None
    return dict(ended.result)


def test_a_search_ends_with_a_kept_recipe_and_all_its_trials(hub: Hub, ann: Caller) -> None:
    found = finished(hub, tunings.request(hub, ann, asked()))
    assert len(found["trials"]) == found["evaluations"] == 6
    assert found["score"] == min(one["score"] for one in found["trials"])
    assert found["trials"][0]["expression"] == "ann/base + 0.5*ann/code"
    assert recipes.show(hub, ann, found["recipe_digest"])["text"] == found["recipe"]
    assert list((hub.settings.data / SPOOL_FOLDER).iterdir()) == []


def test_a_job_whose_worker_ends_goes_on_where_it_was(hub: Hub, ann: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = finished(hub, tunings.request(hub, ann, asked(seed=3)))
    # another second of budget makes it another request, with the same candidates
    scored: list[str] = []
    job, stop = tunings.request(hub, ann, asked(seed=3, seconds=3601)), threading.Event()
    handlers, score = handlers_of(hub), _counted(scored, stop, 3)
    monkeypatch.setattr("adapterhub.hub.serving.scoring.Bench.score", score)
    leased = hub.jobs.lease("one")
    assert leased is not None
    run_leased(hub.jobs, leased, handlers, stop)
    assert (hub.jobs.get(job.id).state, len(scored)) == ("queued", 3)
    found = finished(hub, job)
    assert found["trials"] == unbroken["trials"]
    assert len(scored) == 6


def _counted(scored: list[str], stop: threading.Event, after: int) -> Callable[..., float]:
    """Bench.score, which notes each candidate and has the worker end after so many."""
    from adapterhub.hub.serving.scoring import Bench

    real = Bench.score

    def score(self: Bench, found: Any, heldout: Any) -> float:
        scored.append(found.recipe_digest)
        if len(scored) == after:
            stop.set()
        return real(self, found, heldout)

    return score


def test_what_can_be_known_to_fail_is_refused_before_it_is_queued(hub: Hub, ann: Caller) -> None:
    for more, kind, told in (
        ({"task": None}, InvalidRequest, "say what scores"),
        ({"judge": "http://a.example/x"}, InvalidRequest, "one of both"),
        ({"task": [{"txt": "a"}]}, InvalidRequest, "line 1"),
        ({"task": [{"text": "a" * (1 << 20)}]}, TooLarge, "task"),
        ({"expression": "ann/base + ann/cod"}, UnknownName, "ann/code"),
        ({"expression": "ann/base"}, InvalidParameter, "no weight"),
        ({"parameters": {"density": None}}, InvalidParameter, "density"),
        ({"task": None, "judge": "file:///etc/passwd"}, OutboundRefused, "only http"),
    ):
        with pytest.raises(kind, match=told):
            tunings.request(hub, ann, asked(**more))
    assert [one for one in hub.jobs.list(owner_id=None, state=None, limit=9) if one.kind == tunings.KIND] == []


def test_a_judge_inside_the_network_is_not_reached(hub: Hub, ann: Caller) -> None:
    job = tunings.request(hub, ann, asked(task=None, judge="http://127.0.0.1:9/judge"))
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    error = hub.jobs.get(job.id).error
    assert error is not None
    assert error["code"] == "outbound_refused"
    json.dumps(error)


def test_a_base_that_is_too_large_to_keep_is_refused(hub: Hub, ann: Caller) -> None:
    small = replace(hub, settings=hub.settings.model_copy(update={"pool_bytes": 1000}))
    with pytest.raises(TooLarge, match="ADAPTERHUB_POOL_BYTES"):
        tunings.request(small, ann, asked())
