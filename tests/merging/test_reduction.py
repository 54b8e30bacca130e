"""Sums of LoRAs of fewer ranks, against peft's add_weighted_adapter and against a whole SVD in float64."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from safetensors.torch import load_file

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import Result, run
from adapterhub.merging.errors import InvalidParameter, NotRepresentable
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny

TARGETS = ["q_proj", "down_proj"]
WEIGHTS = {"a": 0.7, "b": -0.4, "c": 0.5}
TEXT = "base + 0.7*a - 0.4*b + 0.5*c"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with three LoRAs whose scaling is 2."""
    root = tmp_path_factory.mktemp("inputs")
    tiny.saved(tiny.llama(), root / "base")
    for seed, name in enumerate(WEIGHTS):
        tiny.adapter(tiny.llama(), root / name, seed=seed, r=4, lora_alpha=8, target_modules=TARGETS)
    tiny.adapter(tiny.llama(), root / "dora", seed=9, r=4, use_dora=True, target_modules=TARGETS)
    return root


def merged(root: Path, out: Path, as_kind: str, text: str = TEXT) -> Result:
    recipe = parse(text)
    inputs = {
        ref: Input(ref.name, LocalFolder(root / ref.name), kind="model" if ref.name == "base" else "lora")
        for ref in recipe.references()
    }
    return run(plan(recipe, inputs, as_kind=as_kind, memory_bytes=1 << 30), out)


def deltas(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """B·A times its scaling, in float64, by module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, A in tensors.items():
        if ".lora_A." in key:
            module = key.split(".lora_A.")[0].removeprefix("base_model.model.")
            r = config["rank_pattern"].get(module, config["r"])
            alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
            B = tensors[key.replace("lora_A", "lora_B")]
            found[module] = alpha / r * (B.double() @ A.double()).numpy()
    return found


def whole(root: Path) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    parts = {name: deltas(root / name) for name in WEIGHTS}
    return {module: np.sum([WEIGHTS[name] * parts[name][module] for name in WEIGHTS], 0) for module in parts["a"]}


def size(matrix: np.ndarray[Any, np.dtype[Any]]) -> float:
    return float(np.linalg.norm(matrix))


def nearest(matrix: np.ndarray[Any, np.dtype[Any]], rank: int) -> np.ndarray[Any, np.dtype[Any]]:
    u, s, vh = np.linalg.svd(matrix)
    near: np.ndarray[Any, np.dtype[Any]] = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return near


def test_a_reduced_sum_is_the_nearest_of_its_rank_and_says_how_near(root: Path, tmp_path: Path) -> None:
    result = merged(root, tmp_path / "out", "lora:r=4")
    found, exact = deltas(tmp_path / "out"), whole(root)
    assert found.keys() == exact.keys()
    said = result.report["reduction"]
    for module, matrix in exact.items():
        np.testing.assert_allclose(found[module], nearest(matrix, 4), atol=1e-6 * size(matrix))
        error = np.linalg.norm(matrix - nearest(matrix, 4)) / np.linalg.norm(matrix)
        assert said["modules"][module] == {"r": 4, "of": 12, "error": pytest.approx(error, rel=1e-4)}
    total = np.sqrt(sum(np.linalg.norm(matrix) ** 2 for matrix in exact.values()))
    lost = np.sqrt(sum(np.linalg.norm(matrix - nearest(matrix, 4)) ** 2 for matrix in exact.values()))
    assert said["error"] == pytest.approx(lost / total, rel=1e-4)
    card = (tmp_path / "out/README.md").read_text()
    assert f"differs from the exact sum by {lost / total:.3g} of its" in card


def test_a_reduced_sum_is_what_peft_makes_by_svd(root: Path, tmp_path: Path) -> None:
    merged(root, tmp_path / "out", "lora:r=5")
    model = PeftModel.from_pretrained(tiny.llama(), str(root / "a"), adapter_name="a")
    for name in ("b", "c"):
        model.load_adapter(str(root / name), adapter_name=name)
    model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "svd", combination_type="svd", svd_rank=5)
    model.save_pretrained(str(tmp_path / "peft"), selected_adapters=["svd"], save_embedding_layers=False)
    found, expected = deltas(tmp_path / "out"), deltas(tmp_path / "peft/svd")
    assert found.keys() == expected.keys()
    for module, matrix in expected.items():
        np.testing.assert_allclose(found[module], matrix, atol=4e-6 * size(matrix))


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_the_fewest_ranks_are_taken_that_hold_the_energy(root: Path, tmp_path: Path, energy: float) -> None:
    result = merged(root, tmp_path / "out", f"lora:energy={energy}")
    for module, matrix in whole(root).items():
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        fewest = int(np.searchsorted(np.cumsum(squares), energy * squares.sum())) + 1
        assert result.report["reduction"]["modules"][module]["r"] == fewest
    assert result.report["reduction"]["error"] <= np.sqrt(1 - energy)


def test_ranks_that_suffice_lose_nothing(root: Path, tmp_path: Path) -> None:
    result = merged(root, tmp_path / "out", "lora:r=64")
    for module, matrix in whole(root).items():
        np.testing.assert_allclose(deltas(tmp_path / "out")[module], matrix, atol=1e-6 * size(matrix))
    assert result.report["reduction"]["error"] == 0.0


def test_patches_that_cancel_leave_a_patch_of_nothing(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "a", tmp_path / "in/a")
    shutil.copytree(root / "a", tmp_path / "in/same")
    shutil.copytree(root / "base", tmp_path / "in/base")
    merged(tmp_path / "in", tmp_path / "out", "lora:r=2", "base + a - same")
    assert all(np.abs(matrix).max() < 1e-12 for matrix in deltas(tmp_path / "out").values())


@pytest.mark.parametrize("asked", ["r=0", "r=x", "rank=4", "energy=0", "energy=1.5", "energy=nan"])
def test_what_is_no_limit_is_refused(root: Path, tmp_path: Path, asked: str) -> None:
    with pytest.raises(InvalidParameter, match="expected r=N"):
        merged(root, tmp_path / "out", f"lora:{asked}")


def test_a_dora_has_no_fewer_ranks(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRepresentable, match="DoRA"):
        merged(root, tmp_path / "out", "lora:r=2", "base + dora")
    assert list(tmp_path.iterdir()) == []
