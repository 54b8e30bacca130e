"""Results made again by the recipe in them: the same bytes, or what differs, and what nobody may read or repeat."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.numpy import load, save

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import InvalidRequest, RepoNotFound
from adapterhub.hub.services import describe, merges, recipes, repos, reproductions
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.merging.errors import InvalidRecipe, UnknownName
from adapterhub.merging.folders import canonical_json
from tests.hub.services.samples import SITE, lora, model
from tests.hub.services.test_merges import ann, content, push, run

__all__ = ["ann"]

MakeUser = Callable[..., Caller]


def reproduced(hub: Hub, caller: Caller, repo_id: str = "ann/both", revision: str | None = None) -> dict[str, Any]:
    job: Job = run(hub, reproductions.request(hub, caller, repo_id, revision))
    assert job.error is None
    assert job.result is not None
    return job.result


def merged(hub: Hub, caller: Caller, expression: str, **options: Any) -> None:
    job = run(hub, merges.request(hub, caller, expression, push="ann/both", **options))
    assert job.error is None


@pytest.mark.parametrize(
    ("expression", "options"),
    [
        ("ann/base + 0.5*ann/code", {}),
        ("ann/code", {"dtype": "BF16"}),
        ("dare_ties(ann/base; ann/code, 0.5*(ann/code + ann/more), seed=3)", {}),
        ("ann/base + delta(ann/tuned, ann/base) + 0.2*ann/code", {}),
        ("ann/base + ann/code + 0.3*ann/more", {"as_kind": "lora"}),
    ],
)
def test_a_result_is_the_same_again_though_its_inputs_moved_on(
    expression: str, options: dict[str, Any], hub: Hub, ann: Caller
) -> None:
    push(hub, ann, "ann/more", lora("ann/base", r=3))
    push(hub, ann, "ann/tuned", model(seed=1))
    merged(hub, ann, expression, **options)
    commit(hub, ann, "ann/code", "main", lora("ann/base", r=4), "retrain")
    told = reproduced(hub, ann)
    assert told["is_same"], told["sentence"]
    assert told["sentence"].startswith("reproduced: ")
    assert told["execution"]["unalike"] == []
    assert told["recipe_digest"] == describe.repo_view(hub, ann, "ann/both")["recipe"]["digest"]
    assert list((hub.settings.data / "spool").iterdir()) == []


def test_a_changed_tensor_is_named_with_how_much_it_differs(hub: Hub, ann: Caller) -> None:
    merged(hub, ann, "ann/base + 0.5*ann/code")
    first = describe.repo_view(hub, ann, "ann/both")["commit"]
    site = SITE.format(layer=1, module="q_proj")
    tensors = load(content(hub, ann, "ann/both", "model.safetensors"))
    tensors[site][2, 3] += 0.5
    files = [AddRegular("model.safetensors", save(tensors, {"format": "pt"})), AddRegular("README.md", b"my own card")]
    commit(hub, ann, "ann/both", "main", files, "tamper")
    told = reproduced(hub, ann)
    assert (told["is_same"], told["files"]["model.safetensors"]) == (False, "differs")
    assert (told["tensors"]["differing"], told["tensors"]["first"]["name"]) == (1, site)
    assert told["sentence"].endswith(f"1 of 4 tensors differ, first {site}: by up to 0.5")
    assert reproduced(hub, ann, revision=first)["is_same"]


def test_another_machine_is_named_beside_the_verdict(hub: Hub, ann: Caller) -> None:
    merged(hub, ann, "ann/base + 0.5*ann/code")
    said = json.loads(content(hub, ann, "ann/both", "execution.json")) | {"torch": "1.0", "cpu_capability": "ALTIVEC"}
    commit(hub, ann, "ann/both", "main", [AddRegular("execution.json", json.dumps(said).encode())], "elsewhere")
    told = reproduced(hub, ann)
    assert told["is_same"]
    assert [one.partition(":")[0] for one in told["execution"]["unalike"]] == ["torch", "CPU capability"]
    commit(hub, ann, "ann/both", "main", [AddRegular("execution.json", b"[[[")], "broken")
    assert reproduced(hub, ann)["execution"]["unalike"] == ["its execution is not recorded"]


def test_what_cannot_be_made_again_is_refused_before_work(hub: Hub, ann: Caller, user: MakeUser) -> None:
    with pytest.raises(InvalidRequest, match=r"holds no recipe\.json"):
        reproductions.request(hub, ann, "ann/base")
    push(hub, ann, "ann/fake", [*model(), AddRegular("recipe.json", b'{"format": "other"}')])
    with pytest.raises(InvalidRecipe):
        reproductions.request(hub, ann, "ann/fake")
    merged(hub, ann, "ann/base + 0.5*ann/code")
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/code", private=True))
    with pytest.raises(UnknownName, match="ann/code"):
        reproductions.request(hub, user("eve"), "ann/both")
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/both", private=True))
    with pytest.raises(RepoNotFound):
        reproductions.request(hub, user("eva"), "ann/both")
    hub.db.transact(lambda session: repos.delete(session, ann, "ann/code"))
    with pytest.raises(UnknownName):
        reproductions.request(hub, ann, "ann/both")


def test_a_result_that_was_merged_elsewhere_tells_its_recipe_too(hub: Hub, ann: Caller) -> None:
    merged(hub, ann, "ann/base + 0.5*ties(ann/code, density=0.5) - ann/code")
    here = describe.repo_view(hub, ann, "ann/both")["recipe"]
    # in its own order, which follows digests; a recipe that was changed by hand need not be in it
    elsewhere = recipes.explain(hub, ann, "ann/base + 0.5*ties(ann/code, density=0.25) - ann/code")
    changed = canonical_json(elsewhere["canonical"])
    push(hub, ann, "ann/elsewhere", [*model(), AddRegular("recipe.json", changed)])
    told = describe.repo_view(hub, ann, "ann/elsewhere")["recipe"]
    assert told["digest"] != here["digest"]
    assert told["text"].startswith("ann/base@")
    assert "density=0.25" in told["text"]
    assert recipes.explain(hub, ann, told["text"])["digest"] == told["digest"]
    push(hub, ann, "ann/broken", [*model(), AddRegular("recipe.json", b"{}")])
    assert describe.repo_view(hub, ann, "ann/broken")["recipe"] is None
