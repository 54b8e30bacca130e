"""Ports through the queue: the branch they make, the bytes they keep, the report they give."""

from collections.abc import Callable

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import describe, ports, repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.worker import handlers_of
from tests.hub.services.samples import lora, model

MakeUser = Callable[..., Caller]


@pytest.fixture
def ann(hub: Hub, user: MakeUser) -> Caller:
    """A user with a base, its second version, a re-upload of the first, and a LoRA."""
    ann = user("ann")
    (hub.settings.data / "spool").mkdir(exist_ok=True)
    for repo_id, files in {
        "ann/base": model(),
        "ann/base-v2": model(seed=1),
        "ann/same": model(),
        "ann/code": lora("ann/base"),
    }.items():
        repos.create(hub, ann, repo_id)
        commit(hub, ann, repo_id, "main", files, "push")
    return ann


def run(hub: Hub, job: Job) -> Job:
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    return hub.jobs.get(job.id)


def digest_of(view: dict[str, object], path: str) -> str:
    files = view["files"]
    assert isinstance(files, list)
    return str(next(file["digest"] for file in files if file["path"] == path))


def test_a_port_lands_on_a_branch_named_after_its_target(hub: Hub, ann: Caller) -> None:
    job = run(hub, ports.request(hub, ann, "ann/code", "ann/base-v2"))
    assert job.error is None
    assert job.result is not None
    assert job.result["branch"].startswith("ported/base-v2-")
    ported = describe.repo_view(hub, ann, "ann/code", job.result["branch"])
    assert ported["base"]["name"] == "ann/base-v2"
    assert describe.repo_view(hub, ann, "ann/code")["base"]["name"] == "ann/base"
    assert ported["licence"] == "unknown"
    assert ("ported", "ann/code") in {(one["relation"], one["name"]) for one in ported["lineage"]["parents"]}


def test_a_port_to_equal_weights_keeps_every_bit(hub: Hub, ann: Caller) -> None:
    job = run(hub, ports.request(hub, ann, "ann/code", "ann/same", push="ann/moved"))
    assert job.result is not None
    assert job.result["report"]["verdict"] == "identical"
    name = "adapter_model.safetensors"
    assert digest_of(describe.repo_view(hub, ann, "ann/moved"), name) == digest_of(
        describe.repo_view(hub, ann, "ann/code"), name
    )


def test_report_only_commits_nothing(hub: Hub, ann: Caller) -> None:
    job = run(hub, ports.request(hub, ann, "ann/code", "ann/base-v2", push=False))
    assert job.result is not None
    assert set(job.result) == {"report"}
    assert job.result["report"]["sentence"]
    assert len(describe.repo_view(hub, ann, "ann/code")["branches"]) == 1


def test_a_model_is_no_patch_and_a_patch_no_base(hub: Hub, ann: Caller) -> None:
    with pytest.raises(InvalidRequest, match="full model"):
        ports.request(hub, ann, "ann/base", "ann/base-v2")
    with pytest.raises(InvalidRequest, match="not a model"):
        ports.request(hub, ann, "ann/code", "ann/code")


def test_a_base_of_other_shapes_is_refused_and_leaves_nothing(hub: Hub, ann: Caller) -> None:
    repos.create(hub, ann, "ann/wide")
    commit(hub, ann, "ann/wide", "main", [AddRegular(f.path, f.content) for f in model(hidden=16)], "push")
    job = run(hub, ports.request(hub, ann, "ann/code", "ann/wide"))
    assert job.state == "failed"
    assert job.error is not None
    assert "(16, 16)" in job.error["message"]
    assert len(describe.repo_view(hub, ann, "ann/code")["branches"]) == 1


def test_a_port_of_a_port_starts_from_the_original(hub: Hub, ann: Caller) -> None:
    first = run(hub, ports.request(hub, ann, "ann/code", "ann/base-v2"))
    assert first.result is not None
    second = run(hub, ports.request(hub, ann, f"ann/code@{first.result['branch']}", "ann/same", push="ann/back"))
    assert second.result is not None
    assert second.result["report"]["verdict"] == "identical"
    origin = describe.repo_view(hub, ann, "ann/code")["commit"]
    parents = describe.repo_view(hub, ann, "ann/back")["lineage"]["parents"]
    assert ("ported", origin) in {(one["relation"], one["commit"]) for one in parents}


def test_a_private_base_of_others_is_not_measured(hub: Hub, ann: Caller, user: MakeUser) -> None:
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/base", private=True))
    bob = user("bob")
    job = run(hub, ports.request(hub, bob, "ann/code", "ann/base-v2", push="bob/code"))
    assert job.result is not None
    assert job.result["report"]["drift"] is None
    assert "not at hand" in job.result["report"]["sentence"]


def test_two_callers_who_ask_for_the_same_each_watch_a_job_of_their_own(hub: Hub, ann: Caller, user: MakeUser) -> None:
    jobs = [ports.request(hub, one, "ann/code", "ann/base-v2", push=False) for one in (ann, ann, user("bob"))]
    assert len({job.id for job in jobs}) == 2
