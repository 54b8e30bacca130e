"""What a hub knows of a commit, and what it refuses to take in."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load, save
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Patch, RevisionFacts
from adapterhub.hub.errors import Forbidden, InvalidCard, InvalidRequest, PickleRefused, UnfitPatch
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import fingerprints, fitness, refs, repos, trees
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.cards import READ_BYTES
from adapterhub.hub.services.commits import AddRegular, DeleteFile, Operation, commit
from adapterhub.hub.services.describe import repo_view
from adapterhub.merging.errors import BrokenContainer
from tests.hub.services.samples import MODEL_INDEX, MakeUser, card, int8_model, lora, model, sparse


def push(hub: Hub, caller: Caller, repo_id: str, *operations: Operation) -> str:
    return commit(hub, caller, repo_id, "main", operations, "push").oid


@pytest.fixture
def base(hub: Hub, ann: Caller) -> str:
    repos.create(hub, ann, "ann/base")
    return push(hub, ann, "ann/base", *model())


@pytest.fixture
def patch(hub: Hub, ann: Caller) -> str:
    return repos.create(hub, ann, "ann/patch").full_name


def files(hub: Hub, caller: Caller, repo_id: str) -> list[str]:
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        return [e.path for e in trees.files(session, repo, refs.resolve(session, repo))]


def test_a_full_model_is_known_by_its_config_and_gets_a_fingerprint_job(hub: Hub, ann: Caller, base: str) -> None:
    view = repo_view(hub, ann, "ann/base")
    assert (view["kind"], view["library"], view["pipeline_tag"]) == ("model", "transformers", "text-generation")
    assert view["parameters"] == {"F32": 4 * 64}
    with hub.db.read() as session:
        job = session.exec(select(Job)).one()
    assert (job.kind, job.payload["commit"]) == ("fingerprint", base)


def test_a_lora_is_known_with_its_base_rank_and_targets(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    push(hub, ann, patch, *lora("ann/base"), card(license="mit", datasets=["d"], language="no", tags=["sft", "x"]))
    view = repo_view(hub, ann, patch)
    known = view["patches"][0]
    assert (known["kind"], known["rank_min"], known["rank_max"], known["targets"]) == ("lora", 2, 2, ["q_proj"])
    assert (known["training_method"], known["datasets"], known["languages"]) == ("sft", ["d"], ["no"])
    assert known["problems"] == []
    assert known["digest"].startswith("sha256:")
    assert known["base"] == {
        "name": "ann/base",
        "repository": "ann/base",
        "commit": base,
        "fingerprint": None,
        "quantisation": known["base"]["quantisation"],
        "fits": "exact",
    }
    assert view["lineage"]["parents"] == [
        {
            "name": "ann/base",
            "repository": "ann/base",
            "commit": base,
            "relation": "adapter",
            "evidence": "declared",
            "weight": None,
        }
    ]
    assert repo_view(hub, ann, "ann/base")["lineage"]["children"][0]["name"] == patch


def test_a_sparse_patch_knows_its_base_by_fingerprint(
    hub: Hub, ann: Caller, base: str, patch: str, tmp_path: Path
) -> None:
    root = "sha256:" + "f" * 64

    def fingerprint(session: Session) -> None:
        row = session.exec(select(RevisionFacts).where(col(RevisionFacts.commit_oid) == base)).one()
        row.fingerprint = root
        session.add(row)

    hub.db.transact(fingerprint)
    carried = {"repo_id": "elsewhere/base", "fingerprint": {"root": root}}
    push(hub, ann, patch, *sparse(tmp_path / "sparse", carried))
    view = repo_view(hub, ann, patch)
    known = view["patches"][0]
    assert (known["kind"], known["effect"], known["problems"]) == ("sparse", "additive", [])
    assert (known["base"]["name"], known["base"]["repository"]) == ("elsewhere/base", "ann/base")
    assert (known["base"]["fingerprint"], known["base"]["fits"]) == (root, "exact")
    assert ("ann/base", "fingerprint") in [(p["name"], p["evidence"]) for p in view["lineage"]["parents"]]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", 7, ["a"]])
def test_a_base_without_a_name_to_store_is_a_problem_and_no_error(
    hub: Hub, ann: Caller, patch: str, tmp_path: Path, name: object
) -> None:
    files = sparse(tmp_path / "sparse", {"repo_id": "NAME"})
    files[0] = AddRegular(files[0].path, files[0].content.replace(b'"NAME"', json.dumps(name).encode()))
    push(hub, ann, patch, *files)
    view = repo_view(hub, ann, patch)
    assert view["kind"] == "unknown" or view["patches"][0]["problems"]


def test_tags_are_those_the_ecosystem_filters_on(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    push(hub, ann, patch, *lora("ann/base"), card(license="mit", datasets=["d"], language=["en", "no"], tags=["sft"]))
    assert repo_view(hub, ann, patch)["tags"] == [
        "peft",
        "safetensors",
        "sft",
        "text-generation",
        "en",
        "no",
        "dataset:d",
        "base_model:ann/base",
        "base_model:adapter:ann/base",
        "license:mit",
    ]


def test_a_repository_may_hold_many_patches(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    push(hub, ann, patch, *lora("ann/base", folder="a/"), *lora("ann/base", r=4, folder="b/"))
    view = repo_view(hub, ann, patch)
    assert view["kind"] == "patches"
    assert [(p["path"], p["rank_max"]) for p in view["patches"]] == [("a", 2), ("b", 4)]


def test_a_base_that_the_files_name_wrongly_is_found_by_the_card(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    push(hub, ann, patch, *lora("elsewhere/base"))
    assert repo_view(hub, ann, patch)["patches"][0]["base"]["fits"] == "unknown"
    push(hub, ann, patch, card(base_model="ann/base"))
    assert repo_view(hub, ann, patch)["patches"][0]["base"]["repository"] == "ann/base"


def test_a_base_with_other_weights_since_no_longer_fits_exactly(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    push(hub, ann, patch, *lora("ann/base"))
    newer = push(hub, ann, "ann/base", model(seed=5)[1])
    assert repo_view(hub, ann, patch)["base"]["fits"] == "unknown"

    def fingerprint(session: Session) -> None:
        for oid in (base, newer):
            row = session.exec(select(RevisionFacts).where(col(RevisionFacts.commit_oid) == oid)).one()
            row.fingerprint = f"sha256:{oid}"
            session.add(row)

    hub.db.transact(fingerprint)
    found = repo_view(hub, ann, patch)["base"]
    assert (found["fits"], found["commit"], found["fingerprint"]) == ("same_arch", base, f"sha256:{base}")


def test_a_private_base_stays_unknown_to_others(hub: Hub, ann: Caller, user: MakeUser, base: str, patch: str) -> None:
    push(hub, ann, patch, *lora("ann/base"))
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/base", private=True))
    found = repo_view(hub, user("bob"), patch)
    assert (found["base"]["repository"], found["base"]["commit"], found["base"]["fits"]) == (None, None, "unknown")
    assert found["lineage"]["parents"][0]["commit"] is None


def test_evaluations_come_from_the_card(hub: Hub, ann: Caller, patch: str) -> None:
    push(hub, ann, patch, card(model_index=MODEL_INDEX))
    expected = [{"task": "text-generation", "dataset": "Prose", "metric": "loss", "value": 1.5}]
    assert repo_view(hub, ann, patch)["evaluations"] == expected


def test_the_text_of_the_card_is_shown_without_its_front_matter(hub: Hub, ann: Caller, patch: str) -> None:
    push(hub, ann, patch, card("# Hello\n", license="mit"))
    view = repo_view(hub, ann, patch)
    assert (view["card"], view["card_text"], view["licence"]) == ({"license": "mit"}, "# Hello\n", "mit")


@pytest.mark.parametrize("wrong", ["wide", "deep"])
def test_a_patch_that_does_not_fit_its_base_is_refused(
    hub: Hub, ann: Caller, base: str, patch: str, wrong: str
) -> None:
    misfit = lora("ann/base", hidden=16) if wrong == "wide" else lora("ann/base", layers=3)
    with pytest.raises(UnfitPatch, match="q_proj"):
        push(hub, ann, patch, *misfit)
    assert files(hub, ann, patch) == [".gitattributes"]
    with hub.db.read() as session:
        assert session.exec(select(Patch).where(Patch.kind == "lora")).all() == []


def test_a_patch_may_come_file_by_file(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    for operation in lora("ann/base"):
        push(hub, ann, patch, operation)
    assert repo_view(hub, ann, patch)["patches"][0]["problems"] == []
    push(hub, ann, patch, DeleteFile("adapter_config.json"))
    assert repo_view(hub, ann, patch)["kind"] == "unknown"


def broken_offsets() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 8


def duplicate_names() -> bytes:
    entry = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f"{{{entry},{entry}}}".encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


@pytest.mark.parametrize("content", [b"", b"1234567", broken_offsets(), duplicate_names()])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "deep/other.safetensors"])
def test_a_broken_safetensors_file_is_refused_wherever_it_lies(
    hub: Hub, ann: Caller, patch: str, name: str, content: bytes
) -> None:
    with pytest.raises(BrokenContainer, match=name):
        push(hub, ann, patch, AddRegular("ok.txt", b"ok"), AddRegular(name, content))
    assert files(hub, ann, patch) == [".gitattributes"]


def test_a_card_that_does_not_parse_is_refused(hub: Hub, ann: Caller, patch: str) -> None:
    with pytest.raises(InvalidCard, match="license"):
        push(hub, ann, patch, AddRegular("README.md", b"---\nlicense: mit\nlicense: mit\n---\n"))
    assert files(hub, ann, patch) == [".gitattributes"]


def test_pickles_are_kept_and_never_opened(hub: Hub, ann: Caller, patch: str) -> None:
    push(hub, ann, patch, AddRegular("training_args.bin", b"\x80\x04cos\nsystem\n(S'false'\ntR."))
    assert repo_view(hub, ann, patch)["kind"] == "unknown"


def test_a_hub_that_refuses_pickles_keeps_those_it_had(hub: Hub, ann: Caller, patch: str) -> None:
    push(hub, ann, patch, AddRegular("old.bin", b"old"))
    strict = replace(hub, settings=hub.settings.model_copy(update={"pickles": "refuse"}))
    for name in ("training_args.bin", "sub/Scaler.PT", "old.bin"):
        with pytest.raises(PickleRefused, match=name):
            push(strict, ann, patch, AddRegular("ok.txt", b"ok"), AddRegular(name, b"new"))
    assert files(hub, ann, patch) == [".gitattributes", "old.bin"]
    push(strict, ann, patch, AddRegular("ok.txt", b"ok"))
    assert files(hub, ann, patch) == [".gitattributes", "ok.txt", "old.bin"]


def test_a_model_whose_weights_stay_keeps_its_fingerprint(hub: Hub, ann: Caller, base: str) -> None:
    def fingerprint(session: Session) -> None:
        row = session.exec(select(RevisionFacts).where(col(RevisionFacts.commit_oid) == base)).one()
        row.fingerprint = "sha256:known"
        session.add(row)

    hub.db.transact(fingerprint)
    push(hub, ann, "ann/base", card(license="mit"))
    assert repo_view(hub, ann, "ann/base")["fingerprint"] == "sha256:known"
    push(hub, ann, "ann/base", model(seed=3)[1])
    assert repo_view(hub, ann, "ann/base")["fingerprint"] is None
    with hub.db.read() as session:
        assert len(session.exec(select(Job)).all()) == 2


def test_of_a_vast_card_only_the_beginning_is_read(hub: Hub, ann: Caller, patch: str) -> None:
    push(hub, ann, patch, AddRegular("README.md", b"---\nlicense: mit\n---\n" + "ü".encode() * 400_000))
    view = repo_view(hub, ann, patch)
    assert view["licence"] == "mit"
    assert len(view["card_text"].encode()) <= READ_BYTES


def test_a_merge_is_the_child_of_its_recipes_inputs(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    pushed = push(hub, ann, patch, *lora("ann/base"))
    repos.create(hub, ann, "ann/both")
    inputs = [
        {"name": f"ann/base@{base}", "path": "", "kind": "model", "digest": "sha256:" + "a" * 64},
        {"name": f"{patch}@{pushed}", "path": "", "kind": "lora", "digest": "sha256:" + "b" * 64},
        {"name": f"ann/gone@{'0' * 40}", "path": "", "kind": "lora", "digest": "no digest"},
        {"name": "/home/ann/model", "path": "", "kind": "lora", "digest": "sha256:" + "c" * 64},
    ]
    ties = {"weight": 2.0, "method": "ties", "inputs": [{"weight": 0.5, "sum": [{"weight": 0.5, "input": 2}]}]}
    recipe = {"format": "adapterhub.recipe", "inputs": inputs, "base": 0, "sum": [{"weight": 0.7, "input": 1}, ties]}
    push(
        hub,
        ann,
        "ann/both",
        *model(),
        AddRegular("recipe.json", json.dumps(recipe).encode()),
        card(base_model="ann/base"),
    )
    parents = repo_view(hub, ann, "ann/both")["lineage"]["parents"]
    assert [(p["name"], p["commit"], p["relation"], p["evidence"], p["weight"]) for p in parents] == [
        ("ann/base", base, "merge", "recipe", None),
        ("ann/gone", None, "merge", "recipe", 0.5),
        (patch, pushed, "merge", "recipe", 0.7),
    ]
    assert [c["name"] for c in repo_view(hub, ann, patch)["lineage"]["children"]] == ["ann/both"]


@pytest.mark.parametrize(
    "recipe", ["[]", "{}", '{"format": "adapterhub.recipe", "inputs": [1], "sum": [[], {}, 3]}', "{"]
)
def test_a_recipe_that_is_none_makes_no_lineage(hub: Hub, ann: Caller, patch: str, recipe: str) -> None:
    push(hub, ann, patch, AddRegular("recipe.json", recipe.encode()))
    assert repo_view(hub, ann, patch)["lineage"]["parents"] == []


def test_a_patch_on_a_quantised_base_fits_and_says_how_it_is_stored(hub: Hub, ann: Caller, patch: str) -> None:
    repos.create(hub, ann, "ann/small")
    push(hub, ann, "ann/small", *int8_model())
    assert repo_view(hub, ann, "ann/small")["patches"][0]["detail"]["quantisation"] == "int8"
    push(hub, ann, patch, *lora("ann/small"))
    known = repo_view(hub, ann, patch)["patches"][0]
    assert known["problems"] == []
    assert known["base"]["quantisation"] == "int8"


def with_nan(base: str, *, folder: str = "") -> list[AddRegular]:
    config, weights = lora(base, folder=folder)
    tensors = load(weights.content)
    name = next(one for one in tensors if "lora_B" in one)
    tensors[name] = tensors[name].copy()
    tensors[name][3, 1] = np.nan
    tensors[name][4, 0] = np.inf
    return [config, replace(weights, content=save(tensors))]


def choose(hub: Hub, caller: Caller, account: str, wish: str | None) -> None:
    hub.db.transact(lambda session: fitness.choose(session, hub, caller, account, wish))


def problems(hub: Hub, caller: Caller, repo_id: str) -> list[str]:
    return [str(one) for patch in repo_view(hub, caller, repo_id)["patches"] for one in patch["problems"]]


def test_a_patch_with_nan_is_refused_by_name_place_and_count(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    with pytest.raises(UnfitPatch) as refused:
        push(hub, ann, patch, *with_nan("ann/base"))
    for told in ("adapter_model.safetensors", "lora_B", "first at (3, 1), 2 of 16 numbers", "account set ann"):
        assert told in str(refused.value)
    assert files(hub, ann, patch) == [".gitattributes"]


def test_an_owner_may_have_unfit_patches_kept_with_a_flag(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    choose(hub, ann, "ann", "flag")
    push(hub, ann, patch, *with_nan("ann/base"), *lora("ann/base", hidden=16, folder="wide/"))
    wide, nan = sorted(problems(hub, ann, patch), key=lambda one: "NaN" in one)
    assert "q_proj" in wide
    assert "lora_B" in nan
    choose(hub, ann, "ann", None)
    with pytest.raises(UnfitPatch):
        push(hub, ann, patch, *with_nan("ann/base", folder="more/"))


def test_the_flag_stays_until_the_values_change(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    choose(hub, ann, "ann", "flag")
    push(hub, ann, patch, *with_nan("ann/base"))
    [flagged] = problems(hub, ann, patch)
    choose(hub, ann, "ann", "refuse")
    push(hub, ann, patch, card("# Read me\n"))
    assert problems(hub, ann, patch) == [flagged]
    push(hub, ann, patch, *lora("ann/base"))
    assert problems(hub, ann, patch) == []


def test_values_that_do_not_change_are_read_once(
    hub: Hub, ann: Caller, base: str, patch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub, ann, patch, *lora("ann/base"))
    monkeypatch.setattr(fitness, "non_finite", None)
    push(hub, ann, patch, card("# Read me\n"))
    assert problems(hub, ann, patch) == []


def test_a_patch_that_came_file_by_file_is_read_when_it_is_whole(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    config, weights = with_nan("ann/base")
    push(hub, ann, patch, weights)
    with pytest.raises(UnfitPatch, match="lora_B"):
        push(hub, ann, patch, config)


def test_a_full_model_with_nan_is_kept_and_flagged_by_the_job_that_reads_it(hub: Hub, ann: Caller) -> None:
    repos.create(hub, ann, "ann/broken")
    config, weights = model()
    tensors = {name: one.copy() for name, one in load(weights.content).items()}
    tensors[min(tensors)][0, 0] = np.nan
    push(hub, ann, "ann/broken", config, replace(weights, content=save(tensors)))
    assert problems(hub, ann, "ann/broken") == []
    with hub.db.read() as session:
        job = session.exec(select(Job)).one()
    fingerprints.run(hub, job, Mock(spec=Report))
    [flagged] = problems(hub, ann, "ann/broken")
    assert f"tensor {min(tensors)} holds NaN" in flagged
    push(hub, ann, "ann/broken", card("# Read me\n"))
    assert problems(hub, ann, "ann/broken") == [flagged]


def test_only_who_administers_an_account_chooses_for_it(hub: Hub, ann: Caller, user: MakeUser) -> None:
    stranger = user("stranger")
    with pytest.raises(Forbidden):
        choose(hub, stranger, "ann", "flag")
    with pytest.raises(InvalidRequest, match="refuse, flag"):
        choose(hub, ann, "ann", "maybe")


def warnings(hub: Hub, caller: Caller, repo_id: str) -> list[str]:
    return [str(one) for patch in repo_view(hub, caller, repo_id)["patches"] for one in patch["warnings"]]


def test_an_untrained_patch_is_kept_with_a_warning_that_stays(hub: Hub, ann: Caller, base: str, patch: str) -> None:
    config, weights = lora("ann/base")
    tensors = {name: one * (0 if "lora_B" in name else 1) for name, one in load(weights.content).items()}
    push(hub, ann, patch, config, replace(weights, content=save(tensors)))
    [warning] = warnings(hub, ann, patch)
    assert "1 more of 2 sites: B is all zeros" in warning
    assert problems(hub, ann, patch) == []
    push(hub, ann, patch, card("# Read me\n"))
    assert warnings(hub, ann, patch) == [warning]
    push(hub, ann, patch, weights)
    assert warnings(hub, ann, patch) == []
