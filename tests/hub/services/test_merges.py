"""Merges through the queue and the real engine: what is refused before work, and what a commit says of itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import Forbidden
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import blobs, describe, merges, publish, recipes, repos, trees
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.worker import handlers_of
from adapterhub.merging.errors import BaseMismatch, InvalidParameter, PlanTooLarge, ShapeMismatch, UnknownName
from tests.hub.services.samples import HIDDEN, SITE, lora, model, sparse

MakeUser = Callable[..., Caller]


@pytest.fixture
def ann(hub: Hub, user: MakeUser) -> Caller:
    """A user with a base, a LoRA on it, and the folder where jobs work."""
    ann = user("ann")
    (hub.settings.data / "spool").mkdir(exist_ok=True)
    push(hub, ann, "ann/base", [*model(), AddRegular("README.md", b"---\nlicense: apache-2.0\n---\n")])
    push(hub, ann, "ann/code", lora("ann/base"))
    return ann


def push(hub: Hub, caller: Caller, repo_id: str, files: list[AddRegular]) -> None:
    repos.create(hub, caller, repo_id)
    commit(hub, caller, repo_id, "main", files, "push")


def run(hub: Hub, job: Job) -> Job:
    InlineExecutor(hub.jobs, handlers_of(hub)).drain()
    return hub.jobs.get(job.id)


def content(hub: Hub, caller: Caller, repo_id: str, path: str) -> bytes:
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        view = describe.repo_view(hub, caller, repo_id)
        entry = trees.entry(session, repo, view["commit"], path)
    return b"".join(blobs.open_file(hub, entry))


def test_a_merge_is_committed_with_its_recipe_lineage_and_licences(hub: Hub, ann: Caller) -> None:
    job = run(hub, merges.request(hub, ann, "ann/base + 0.5*ann/code", push="ann/both"))
    assert job.error is None
    assert job.result is not None
    view = describe.repo_view(hub, ann, "ann/both")
    assert view["commit"] == job.result["commit"]
    assert view["kind"] == "model"
    assert view["recipe"]["text"] == "ann/base + 0.5*ann/code"
    assert {(one["name"], one["relation"]) for one in view["lineage"]["parents"]} >= {("ann/code", "merge")}
    assert view["card"]["license_name"] == "apache-2.0 AND unknown"
    assert recipes.show(hub, ann, view["recipe"]["digest"])["canonical"]["inputs"]


def test_the_merged_weights_are_the_base_plus_half_the_delta(hub: Hub, ann: Caller) -> None:
    run(hub, merges.request(hub, ann, "ann/base + 0.5*ann/code", push="ann/both"))
    W = load(content(hub, ann, "ann/base", "model.safetensors"))
    patch = load(content(hub, ann, "ann/code", "adapter_model.safetensors"))
    merged = load(content(hub, ann, "ann/both", "model.safetensors"))
    site = SITE.format(layer=1, module="q_proj")
    stem = "base_model.model.model.layers.1.self_attn.q_proj"
    delta = patch[f"{stem}.lora_B.weight"].astype("f8") @ patch[f"{stem}.lora_A.weight"].astype("f8")  # (out, in)
    scaling = 4 / 2
    expected = (W[site].astype("f8") + 0.5 * scaling * delta).astype("f4")
    assert merged[site].shape == (HIDDEN, HIDDEN)
    np.testing.assert_allclose(merged[site], expected, rtol=2**-22, atol=2**-22)
    untouched = SITE.format(layer=1, module="v_proj")
    assert merged[untouched].tobytes() == W[untouched].tobytes()


def test_the_same_merge_again_makes_no_new_commit(hub: Hub, ann: Caller) -> None:
    first = run(hub, merges.request(hub, ann, "ann/base + ann/code", push="ann/both"))
    again = run(hub, merges.request(hub, ann, "ann/code + ann/base", push="ann/both"))
    assert first.result is not None
    assert again.result is not None
    assert again.id != first.id
    assert again.result["recipe_digest"] == first.result["recipe_digest"]
    weights = [
        {f["path"]: f["digest"] for f in one.result["files"] if f["path"].endswith("safetensors")}
        for one in (first, again)
        if one.result
    ]
    assert weights[0] == weights[1]


def test_a_job_that_was_killed_finds_the_engines_shards_and_nothing_else(hub: Hub, ann: Caller) -> None:
    job = merges.request(hub, ann, "ann/base + 0.5*ann/code", push="ann/both")
    folder = hub.settings.data / "spool" / f"job-{job.id}"
    (folder / ".result.0123456789ab.partial").mkdir(parents=True)
    (folder / "result").mkdir()
    (folder / "result/config.json").write_text("{}")
    (folder / "left").write_text("over")
    with publish.workplace(hub, job) as out:
        assert [path.name for path in folder.iterdir()] == [".result.0123456789ab.partial"]
        assert out == folder / "result"
    assert not folder.exists()


def test_an_unfinished_merge_is_asked_for_once(hub: Hub, ann: Caller) -> None:
    jobs = [merges.request(hub, ann, "ann/base + ann/code", push="ann/both") for _ in range(3)]
    assert len({job.id for job in jobs}) == 1


def test_a_patch_alone_stands_on_the_base_it_was_trained_on(hub: Hub, ann: Caller) -> None:
    job = run(hub, merges.request(hub, ann, "ann/code", push="ann/folded"))
    assert job.error is None
    assert describe.repo_view(hub, ann, "ann/folded")["kind"] == "model"


def test_as_lora_commits_an_adapter(hub: Hub, ann: Caller) -> None:
    push(hub, ann, "ann/more", lora("ann/base", r=3))
    job = run(hub, merges.request(hub, ann, "0.7*ann/code + 0.5*ann/more", push="ann/joined", as_kind="lora"))
    assert job.error is None
    view = describe.repo_view(hub, ann, "ann/joined")
    assert (view["kind"], view["patches"][0]["rank_max"]) == ("lora", 5)
    assert json.loads(content(hub, ann, "ann/joined", "adapter_config.json"))["base_model_name_or_path"] == "ann/base"


def test_a_misspelt_name_is_refused_with_a_near_one_and_queues_nothing(hub: Hub, ann: Caller) -> None:
    with pytest.raises(UnknownName, match="did you mean ann/code"):
        merges.request(hub, ann, "ann/base + ann/cod")
    assert all(job.kind != merges.KIND for job in hub.jobs.list())


def test_shapes_that_do_not_fit_are_refused_before_any_work(hub: Hub, ann: Caller) -> None:
    push(hub, ann, "ann/wide", model(hidden=16))
    with pytest.raises(ShapeMismatch, match=r"\(8, 8\).*\(16, 16\)"):
        merges.request(hub, ann, "ann/wide + ann/code")


def test_a_patch_on_top_of_another_is_merged_with_it_and_refused_without(hub: Hub, ann: Caller, tmp_path: Path) -> None:
    push(hub, ann, "ann/sft", sparse(tmp_path / "sft", {"repo_id": "ann/base"}))
    on_top = {"repo_id": "ann/base", "recipe": "ann/base + ann/sft"}
    push(hub, ann, "ann/dpo", sparse(tmp_path / "dpo", on_top))
    for expression in ("ann/dpo", "ann/base + ann/dpo"):
        with pytest.raises(BaseMismatch, match=r"add it, as in ann/base \+ ann/sft \+ ann/dpo"):
            merges.request(hub, ann, expression, push="ann/both")
    job = run(hub, merges.request(hub, ann, "ann/base + ann/sft + ann/dpo", push="ann/both"))
    assert job.error is None


def test_nobody_merges_into_a_foreign_namespace(hub: Hub, ann: Caller, user: MakeUser) -> None:
    user("bob")
    with pytest.raises(Forbidden, match="bob"):
        merges.request(hub, ann, "ann/base + ann/code", push="bob/stolen")


def test_a_private_input_is_unknown_to_strangers(hub: Hub, ann: Caller, user: MakeUser) -> None:
    repos.create(hub, ann, "ann/secret", private=True)
    commit(hub, ann, "ann/secret", "main", lora("ann/base"), "push")
    with pytest.raises(UnknownName):
        merges.request(hub, user("eve"), "ann/base + ann/secret")


def test_an_explanation_tells_inputs_sizes_and_licences_before_work(hub: Hub, ann: Caller) -> None:
    told = recipes.explain(hub, ann, "ann/base + 0.5*ann/code")
    assert told["tensors_touched"] == 2
    assert told["licences"] == ["apache-2.0", "unknown"]
    assert told["size_bytes"] > 4 * HIDDEN * HIDDEN * 4


def test_what_is_made_from_something_private_is_private(hub: Hub, ann: Caller) -> None:
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/code", private=True))
    run(hub, merges.request(hub, ann, "ann/base + ann/code", push="ann/hidden"))
    assert describe.repo_view(hub, ann, "ann/hidden")["private"]


def test_a_job_leaves_no_files_and_clears_those_of_a_killed_attempt(hub: Hub, ann: Caller) -> None:
    job = merges.request(hub, ann, "ann/base + ann/code", push="ann/both")
    left = hub.settings.data / "spool" / f"job-{job.id}" / ".result.partial"
    left.mkdir(parents=True)
    assert run(hub, job).state == "succeeded"
    assert not list((hub.settings.data / "spool").iterdir())


def test_a_result_larger_than_the_disk_is_refused_before_it_is_queued(
    hub: Hub, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = recipes.explain(hub, ann, "ann/base + ann/code")["size_bytes"]
    for free, is_refused in ((size_bytes - 1, True), (size_bytes, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if is_refused:
            with pytest.raises(PlanTooLarge, match=f"takes {size_bytes} bytes, and {free} are free"):
                merges.request(hub, ann, "ann/base + ann/code", push="ann/both")
            assert all(job.kind != merges.KIND for job in hub.jobs.list())
        else:
            assert merges.request(hub, ann, "ann/base + ann/code", push="ann/both").state == "queued"


def test_what_becomes_of_heads_is_asked_with_the_merge(hub: Hub, ann: Caller) -> None:
    with pytest.raises(InvalidParameter, match="heads is 'keep:ann/nothing'"):
        merges.request(hub, ann, "ann/base + ann/code", push="ann/both", heads="keep:ann/nothing")
    job = run(hub, merges.request(hub, ann, "ann/base + ann/code", push="ann/both", heads="drop"))
    assert job.error is None
    assert job.result is not None
    assert recipes.show(hub, ann, job.result["recipe_digest"])["canonical"]["heads"] == "drop"
