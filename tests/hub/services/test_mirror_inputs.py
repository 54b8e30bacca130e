"""Work on a mirrored base whose bytes are still at another hub, a real one: they come first, once, or it says why."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save
from sqlmodel import select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import BlobOwner, Job, Mirror, MirrorBlob, RevisionFacts, now
from adapterhub.hub.errors import NotFetched, OutboundFailed, UnfitPatch
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import (
    describe,
    flights,
    ingest,
    layers,
    merges,
    mirror,
    mirror_files,
    mirror_inputs,
    mirror_reading,
    ports,
    recipes,
    repos,
    variants,
)
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.wiring import open_hub, worker_environment
from adapterhub.hub.settings import Settings
from adapterhub.hub.worker import handlers_of
from adapterhub.merging.errors import Cancelled
from tests.clients.server import ROOT
from tests.hub.conftest import EVERYWHERE
from tests.hub.services.farhub import FarHub, far_hub
from tests.hub.services.otherhub import OtherHub, serving
from tests.hub.services.samples import lora, model

pytestmark = pytest.mark.slow

BASE = "far/base"
ASKER = Caller("an id", "somebody")
WEIGHTS = {file.path: file.content for file in model()}["model.safetensors"]
DIGEST = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(params=EVERYWHERE)
def hub(request: pytest.FixtureRequest) -> Hub:
    """A hub on every database and store."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Hub)
    return found


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHub]:
    """Another hub with two bases."""
    with far_hub(tmp_path_factory.mktemp("far") / "data") as far:
        far.push("base", model())
        far.push("second", model(seed=1))
        yield far


@pytest.fixture
def near(hub: Hub, far: FarHub) -> Hub:
    (hub.settings.data / "spool").mkdir(exist_ok=True)
    return replace(hub, settings=hub.settings.model_copy(update=far.told))


@pytest.fixture
def ann(near: Hub, ann: Caller) -> Caller:
    """A user with a LoRA on the mirrored base, none of whose weights are here."""
    mirror.ensure(near, ASKER, BASE, None)
    repos.create(near, ann, "ann/code")
    commit(near, ann, "ann/code", "main", lora(BASE), "push")
    assert not is_here(near, DIGEST)
    return ann


def is_here(hub: Hub, digest: str) -> bool:
    with hub.db.read() as session:
        return session.exec(select(BlobOwner).where(BlobOwner.digest == digest)).first() is not None


def run(hub: Hub, job: Job) -> Job:
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    return hub.jobs.get(job.id)


def gone(hub: Hub) -> Hub:
    """The same when nothing answers at the other hub's address."""
    with hub.db.write() as session:
        for row in session.exec(select(Mirror)):
            row.source_url = "http://127.0.0.1:9"
    return hub


def test_the_shapes_of_a_patch_are_checked_by_headers_that_are_read_there(near: Hub, ann: Caller) -> None:
    assert describe.repo_view(near, ann, "ann/code")["base"]["repository"] == BASE
    repos.create(near, ann, "ann/wide")
    with pytest.raises(UnfitPatch):
        commit(near, ann, "ann/wide", "main", lora(BASE, hidden=16), "push")
    assert not is_here(near, DIGEST)


def test_a_patch_is_taken_unchecked_when_the_other_hub_is_gone(
    near: Hub, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos.create(near, ann, "ann/wide")
    monkeypatch.setattr(mirror_reading, "_beginnings", mirror_reading._Beginnings())
    commit(gone(near), ann, "ann/wide", "main", lora(BASE, hidden=16), "push")


def test_a_merge_brings_its_base_first(near: Hub, ann: Caller) -> None:
    assert recipes.explain(near, ann, f"{BASE} + ann/code")["digest"]
    job = merges.request(near, ann, f"{BASE} + 0.5*ann/code", push="ann/both")
    assert not is_here(near, DIGEST)
    job = run(near, job)
    assert job.error is None
    assert is_here(near, DIGEST)
    assert describe.repo_view(near, ann, "ann/both")["kind"] == "model"


def test_a_merge_that_misses_its_base_names_the_other_hub(near: Hub, ann: Caller) -> None:
    job = merges.request(near, ann, f"{BASE} + ann/code", push="ann/both")
    gone(near)
    job = run(near, job)
    assert job.state == "failed"
    assert job.error is not None
    assert "127.0.0.1:9" in job.error["message"]


def counted(seed: int) -> list[AddRegular]:
    """A model with an index buffer, which a difference of models compares before it is planned."""
    config, weights = model(seed=seed)
    tensors = load(weights.content) | {"position_ids": np.arange(4)}
    return [config, AddRegular(weights.path, save(tensors, {"format": "pt"}))]


def test_a_merge_that_reads_tensors_to_be_planned_waits_for_them(near: Hub, ann: Caller, far: FarHub) -> None:
    for number, name in enumerate(("one", "two")):
        far.push(name, counted(number))
        mirror.ensure(near, ASKER, f"far/{name}", None)
    asked = "far/one + delta(far/two, far/one)"
    with pytest.raises(NotFetched, match="try again later"):
        merges.request(near, ann, asked, push="ann/both")
    assert [job.kind for job in near.jobs.list()].count(mirror_inputs.KIND) == 2
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    assert run(near, merges.request(near, ann, asked, push="ann/both")).error is None


def wanted(hub: Hub, name: str) -> Wanted:
    with hub.db.read() as session:
        repo = repos.find(session, ANONYMOUS, name)
    return Wanted(repo, str(describe.repo_view(hub, ANONYMOUS, name)["commit"]))


def test_a_port_brings_both_bases(near: Hub, ann: Caller) -> None:
    mirror.ensure(near, ASKER, "far/second", None)
    job = run(near, ports.request(near, ann, "ann/code", "far/second"))
    assert job.error is None
    assert job.result is not None
    assert job.result["branch"].startswith("ported/second-")
    assert is_here(near, DIGEST)


def test_the_picture_of_a_patch_brings_its_base(near: Hub, ann: Caller) -> None:
    assert layers.picture(near, ann, "ann/code")["state"] == "queued"
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    assert layers.picture(near, ann, "ann/code")["state"] == "succeeded"
    assert is_here(near, DIGEST)


def test_serving_says_that_the_base_is_on_its_way_and_then_serves(near: Hub, ann: Caller) -> None:
    with pytest.raises(NotFetched, match=f"{BASE}: 1 of its files"):
        variants.served(near, ann, f"{BASE}:ann/code")
    with pytest.raises(NotFetched):
        variants.served(near, ann, f"{BASE}:ann/code")
    assert [job.kind for job in near.jobs.list()].count(mirror_inputs.KIND) == 1
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    assert variants.served(near, ann, f"{BASE}:ann/code").sources[0].folder.path("model.safetensors").exists()


def test_what_is_served_stays(near: Hub, ann: Caller) -> None:
    with pytest.raises(NotFetched):
        variants.served(near, ann, BASE)
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    long_ago = now() - timedelta(days=2)
    with near.db.write() as session:
        session.exec(select(MirrorBlob)).one().used_at = long_ago
    variants.served(near, ann, BASE)
    with near.db.read() as session:
        assert session.exec(select(MirrorBlob)).one().used_at > long_ago


def test_serving_tells_why_the_base_does_not_come(near: Hub, ann: Caller) -> None:
    with pytest.raises(NotFetched):
        variants.served(near, ann, BASE)
    gone(near)
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    with pytest.raises(OutboundFailed, match=r"127\.0\.0\.1:9"):
        variants.served(near, ann, BASE)


def test_weights_that_nothing_here_opens_are_not_brought(near: Hub, ann: Caller, far: FarHub) -> None:
    pickled = AddRegular("pytorch_model.bin", os.urandom(5000))
    far.push("both-formats", [*model(seed=2), pickled])
    mirror.ensure(near, ASKER, "far/both-formats", None)
    with pytest.raises(NotFetched):
        variants.served(near, ann, "far/both-formats")
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    assert "pytorch_model.bin" not in variants.served(near, ann, "far/both-formats").sources[0].folder.names()
    assert not is_here(near, "sha256:" + hashlib.sha256(pickled.content).hexdigest())


def test_a_mirrored_base_gets_its_fingerprint_when_it_is_whole(near: Hub, ann: Caller) -> None:
    assert [job for job in near.jobs.list() if job.kind == ingest.FINGERPRINT_JOB] == []
    one = wanted(near, BASE)
    with near.db.read() as session:
        entry = mirror_inputs._absent(session, one)[0]
    mirror_files.fetch(near, one.repo, one.commit, entry)
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    with near.db.read() as session:
        facts = session.get_one(RevisionFacts, (one.repo.id, one.commit))
    assert facts.fingerprint
    repos.create(near, ann, "ann/own-base")
    commit(near, ann, "ann/own-base", "main", model(), "push")
    InlineExecutor(near.jobs, handlers_of(near)).drain()
    assert describe.repo_view(near, ann, "ann/own-base")["fingerprint"] == facts.fingerprint


FETCH = "from tests.hub.services.test_mirror_inputs import fetch_alone; fetch_alone()"


def fetch_alone() -> None:
    """What a process does that needs the one large file of the one mirror of its hub."""
    hub = open_hub(Settings())
    one = wanted(hub, "far/model")
    with hub.db.read() as session:
        (entry,) = mirror_inputs._absent(session, one)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    mirror_files.fetch(hub, one.repo, one.commit, entry)
    hub.db.close()


def test_processes_that_ask_at_once_share_one_download(hub: Hub) -> None:
    other = OtherHub(files={"model.safetensors": WEIGHTS}, large={"model.safetensors"})
    with serving(other):
        told = {"mirror_url": other.url, "outbound_allow": "127.0.0.1"}
        near = replace(hub, settings=hub.settings.model_copy(update=told))
        mirror.ensure(near, ASKER, "far/model", None)
        asked = len(other.asked)
        other.hold = threading.Event()
        command, its = [sys.executable, "-c", FETCH], worker_environment(near.settings)
        both = [subprocess.Popen(command, cwd=ROOT, env=its, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for one in both:
            assert one.stdout is not None
            assert one.stdout.readline() == "begun\n"
        other.hold.set()
        for one in both:
            assert one.wait(60) == 0
            assert one.stdout is not None
            one.stdout.close()
        assert len(other.asked) == asked + 1
    assert is_here(hub, DIGEST)


def test_a_turn_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = "import os,sys; from pathlib import Path; from adapterhub.hub.services import flights\n"
    code += f"with flights.turn(Path({str(tmp_path)!r}), 'a'): os._exit(3)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
    with flights.turn(tmp_path, "a"):
        assert len(list((tmp_path / flights.FOLDER).iterdir())) == 1
        with pytest.raises(Cancelled), flights.turn(tmp_path, "a", cancelled=lambda: True):
            pass
    assert list((tmp_path / flights.FOLDER).iterdir()) == []
