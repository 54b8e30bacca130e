"""Shared deltas with a mask for each task: against the papers' formulas in float64, and folded back by the engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapterhub.merging import engine, patches
from adapterhub.merging.errors import InvalidParameter, InvalidPatch
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.masks import Task, masking, write_masks
from adapterhub.merging.ops.task_masks import unify
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.compare import record

NAMES = ("a", "b", "c")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base and three models tuned from it, of which the third differs in few entries."""
    base = tiny.saved(tiny.llama(), tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        torch.manual_seed(number + 1)
        share = 0.1 if name == "c" else 0.8
        moved = {key: 0.02 * torch.randn_like(W) * (torch.rand_like(W) < share) for key, W in weights.items()}
        tuned = {key: W + moved[key] for key, W in weights.items()}
        save_file(tuned, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_bytes((base / "config.json").read_bytes())
    return tmp_path


def planned(folder: Path, text: str, **more: Path) -> Plan:
    recipe = parse(text)
    inputs = {}
    for ref in recipe.references():
        root = more.get(ref.name.partition("/")[0], folder / ref.name)
        kind = "mask" if ref.name.startswith("masks") else "model"
        inputs[ref] = Input(ref.address, LocalFolder(root), ref.path, kind)
    return plan(recipe, inputs, memory_bytes=1 << 30)


def of_tasks(folder: Path, *names: str) -> dict[str, Plan]:
    return {name: planned(folder, f"base + {name}") for name in names}


def deltas(folder: Path, *names: str) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """float64 deltas of each task by parameter, as exact differences of float32 weights."""
    base = {key: one.double().numpy() for key, one in load_file(folder / "base" / "model.safetensors").items()}
    tuned = {name: load_file(folder / name / "model.safetensors") for name in names}
    return {name: {key: tuned[name][key].double().numpy() - W for key, W in base.items()} for name in names}


def emr(found: dict[str, dict[str, np.ndarray[Any, Any]]]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """arXiv:2405.17461, algorithm 1, on whole models in float64."""
    keys = next(iter(found.values())).keys()
    unified = {}
    for key in keys:
        stacked = np.stack([one[key] for one in found.values()])
        gamma = np.sign(stacked.sum(0))
        unified[key] = gamma * np.where(np.sign(stacked) == gamma, np.abs(stacked), 0).max(0)
    rebuilt = {}
    for name, one in found.items():
        masks = {key: one[key] * unified[key] > 0 for key in keys}
        covered = sum(np.abs(masks[key] * unified[key]).sum() for key in keys)
        scale = sum(np.abs(one[key]).sum() for key in keys) / covered
        rebuilt[name] = {key: scale * masks[key] * unified[key] for key in keys}
    return rebuilt


def tall(found: dict[str, dict[str, np.ndarray[Any, Any]]], lam: float) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """arXiv:2405.07813, equation 4 and the retrieval W + m ⊙ τ, in float64."""
    keys = next(iter(found.values())).keys()
    total = {key: sum(one[key] for one in found.values()) for key in keys}
    return {
        name: {key: (np.abs(one[key]) > lam * np.abs(total[key] - one[key])) * total[key] for key in keys}
        for name, one in found.items()
    }


def folded(folder: Path, task: str) -> dict[str, np.ndarray[Any, Any]]:
    """The task's reconstruction as the engine folds it, less the base, in float64."""
    out = folder / f"folded-{task}"
    engine.run(planned(folder, f"base + masks/x/{task}", masks=folder / "out"), out)
    after, before = load_file(out / "model.safetensors"), load_file(folder / "base" / "model.safetensors")
    return {key: after[key].double().numpy() - W.double().numpy() for key, W in before.items()}


@pytest.mark.parametrize("method", ["emr", "tall"])
def test_each_tasks_patch_folds_to_the_papers_reconstruction(models: Path, method: str) -> None:
    tasks = write_masks(of_tasks(models, *NAMES), masking(method), models / "out", method)
    found = deltas(models, *NAMES)
    expected = emr(found) if method == "emr" else tall(found, 0.6)
    W = load_file(models / "base" / "model.safetensors")
    for one in tasks:
        rebuilt, worst = folded(models, one.name), 0.0
        for key, value in expected[one.name].items():
            # one rounding of W + Δ to float32, and sums of the tasks' deltas in float32
            size = np.abs(W[key].double().numpy()) + sum(2 * np.abs(found[name][key]) for name in NAMES)
            assert (np.abs(rebuilt[key] - value) <= 2**-23 * size).all(), key
            worst = max(worst, float((np.abs(rebuilt[key] - value) / (np.abs(W[key].double().numpy()) + 1e-3)).max()))
        record("mask", "llama", "float32", f"{method} in float64", worst, "masks folded")
        squares = sum(((value - found[one.name][key]) ** 2).sum() for key, value in expected[one.name].items())
        norm = sum((value**2).sum() for value in found[one.name].values())
        assert one.error == pytest.approx((squares / norm) ** 0.5, rel=1e-5)


def test_emr_keeps_the_l1_norm_of_every_delta(models: Path) -> None:
    tasks = write_masks(of_tasks(models, *NAMES), masking("emr"), models / "out", "emr")
    found = deltas(models, *NAMES)
    for one in tasks:
        exact = sum(np.abs(value).sum() for value in found[one.name].values())
        assert one.l1 == pytest.approx(exact, rel=1e-6)
        assert one.scale * one.covered == pytest.approx(one.l1, rel=1e-12)
        rebuilt = sum(np.abs(value).sum() for value in folded(models, one.name).values())
        assert rebuilt == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("method", ["emr", "tall"])
def test_one_task_alone_is_exact(models: Path, method: str) -> None:
    (one,) = write_masks(of_tasks(models, "a"), masking(method), models / "out", method)
    assert (one.scale, one.error) == (1.0, 0.0)
    out = models / "folded"
    engine.run(planned(models, "base + masks/x/a", masks=models / "out"), out)
    tuned = load_file(models / "a" / "model.safetensors")
    for key, value in load_file(out / "model.safetensors").items():
        # W + (W' - W) in float32 is W' but for the rounding of the difference
        assert (value - tuned[key]).abs().max() <= 2**-23 * tuned[key].abs().max(), key


def test_tall_with_no_threshold_keeps_every_entry_that_moved(models: Path) -> None:
    tasks = write_masks(of_tasks(models, *NAMES), masking("tall", tall=0.0), models / "out", "tall")
    found = deltas(models, *NAMES)
    for one in tasks:
        moved = sum(np.count_nonzero(value) for value in found[one.name].values())
        entries = sum(value.size for value in found[one.name].values())
        assert one.selected == pytest.approx(moved / entries)


def test_the_folder_holds_the_delta_once_and_a_bit_for_every_entry_and_task(models: Path) -> None:
    write_masks(of_tasks(models, *NAMES), masking("emr"), models / "out", "emr")
    facts = {one.path: one for one in patches.inspect(LocalFolder(models / "out"))}
    assert {path: one.kind for path, one in facts.items()} == {"shared": "dense", "a": "mask", "b": "mask", "c": "mask"}
    assert all(one.problems == () for one in facts.values())
    entries = sum(one.numel() for one in load_file(models / "base" / "model.safetensors").values())
    masks = load_file(models / "out" / "a" / "patch.safetensors")
    assert sum(one.numel() for one in masks.values()) == pytest.approx(entries / 8, abs=len(masks))
    again = models / "again"
    write_masks(of_tasks(models, *NAMES), masking("emr"), again, "emr")
    for path in ("shared", "a"):
        for file in ("patch.json", "patch.safetensors"):
            assert (again / path / file).read_bytes() == (models / "out" / path / file).read_bytes()


def test_weights_of_a_recipe_are_those_of_its_tasks(models: Path) -> None:
    plans = {"a": planned(models, "base + 0.5*a"), "b": planned(models, "base - b")}
    tasks = write_masks(plans, masking("emr"), models / "out", "emr")
    found = deltas(models, "a", "b")
    assert tasks[0].l1 == pytest.approx(0.5 * sum(np.abs(value).sum() for value in found["a"].values()), rel=1e-6)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_the_unified_delta_has_the_elected_sign_and_the_largest_size(rows: list[list[int]]) -> None:
    unified = unify([torch.tensor(row, dtype=torch.float32) for row in rows])
    for column, value in enumerate(unified.tolist()):
        entries = [row[column] for row in rows]
        sign = int(np.sign(sum(entries)))
        assert value == sign * max((abs(one) for one in entries if np.sign(one) == sign), default=0)


def test_what_cannot_be_shared_is_refused(models: Path) -> None:
    with pytest.raises(InvalidParameter, match="emr or tall"):
        masking("emt")
    with pytest.raises(InvalidParameter, match="from 0"):
        masking("tall", tall=-1.0)
    with pytest.raises(InvalidPatch, match="change nothing"):
        write_masks({"base": planned(models, "base")}, masking("emr"), models / "out", "emr")
    with pytest.raises(InvalidParameter, match="a name of its own"):
        write_masks(dict(zip(("shared",), of_tasks(models, "a").values(), strict=True)), masking("emr"), models, "emr")
    assert Task("a").as_json()["scale"] == 1.0
