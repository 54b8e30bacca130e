"""Results made again, beside committed ones that somebody changed; what an execution says of itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub import __version__
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.execution import unlike
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.reproduction import compare
from tests.merging.test_plan import inputs, planned

__all__ = ["inputs"]

SITE = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def pair(inputs: dict[Ref, Input], tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with one and the same result."""
    run(planned("tiny/base + 0.5*tiny/a", inputs), tmp_path / "made")
    shutil.copytree(tmp_path / "made", tmp_path / "kept")
    return tmp_path / "made", tmp_path / "kept"


def changed(folder: Path, **tensors: torch.Tensor) -> None:
    held = load_file(folder / "model.safetensors")
    save_file(held | tensors, folder / "model.safetensors", {"format": "pt"})


def test_the_same_files_are_the_same_whatever_the_card_says(pair: tuple[Path, Path]) -> None:
    (pair[1] / "README.md").write_text("edited")
    (pair[1] / "notes.txt").write_text("kept beside")
    found = compare(*map(LocalFolder, pair))
    assert (found.is_same, found.tensors) == (True, None)
    assert found.files.keys() >= {"model.safetensors", "config.json", "recipe.json"}


def test_the_first_tensor_that_differs_is_named_with_its_largest_difference(pair: tuple[Path, Path]) -> None:
    moved = load_file(pair[0] / "model.safetensors")[SITE].clone()
    moved[1, 2] += 0.25
    moved[0, 0] += 0.125
    changed(pair[1], **{SITE: moved, "model.norm.weight": torch.zeros(16)})
    found = compare(*map(LocalFolder, pair))
    assert not found.is_same
    assert found.files["model.safetensors"] == "differs"
    assert found.tensors is not None
    assert found.tensors["differing"] == 2
    assert found.tensors["first"] == {
        "name": SITE,
        "found": "F32 [16, 16]",
        "expected": "F32 [16, 16]",
        "largest": pytest.approx(0.25, abs=1e-6),
    }


@pytest.mark.parametrize(
    ("tensor", "expected", "largest"),
    [
        (torch.zeros(4, 4), "F32 [4, 4]", None),
        (torch.full((16, 16), float("nan")), "F32 [16, 16]", None),
        (torch.zeros(16, 16, dtype=torch.int8), "I8 [16, 16]", "its own"),
    ],
)
def test_other_shapes_dtypes_and_values_are_told(
    tensor: torch.Tensor, expected: str, largest: str | None, pair: tuple[Path, Path]
) -> None:
    here = load_file(pair[0] / "model.safetensors")[SITE]
    changed(pair[1], **{SITE: tensor})
    told = compare(*map(LocalFolder, pair)).tensors
    assert told is not None
    assert told["first"]["expected"] == expected
    assert told["first"]["largest"] == (pytest.approx(float(here.abs().max())) if largest else None)


def test_files_that_only_one_side_has_are_told(pair: tuple[Path, Path]) -> None:
    (pair[1] / "config.json").unlink()
    (pair[1] / "model.safetensors").rename(pair[1] / "model-00001-of-00001.safetensors")
    found = compare(*map(LocalFolder, pair))
    told = {name: state for name, state in found.files.items() if state != "same"}
    assert told == {
        "config.json": "missing",
        "model.safetensors": "missing",
        "model-00001-of-00001.safetensors": "extra",
    }
    assert found.tensors == {"differing": 0, "of": found.tensors["of"] if found.tensors else 0, "first": None}


def test_a_result_says_what_computed_it_and_its_recipe_does_not(
    inputs: dict[Ref, Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned("tiny/base + 0.5*tiny/a", inputs, dtype="BF16")
    first = run(made, tmp_path / "first")
    said = json.loads((tmp_path / "first" / "execution.json").read_text())
    assert first.report["execution"] == said
    assert (said["engine"], said["torch"], said["dtypes"]) == (__version__, torch.__version__, ["BF16"])
    assert said["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr("adapterhub.merging.execution.__version__", "9.9")
    again = run(made, tmp_path / "again").report["execution"]
    assert again["id"] != said["id"]
    assert again["recipe_digest"] == said["recipe_digest"] == made.recipe_digest
    assert list(unlike(said, again)) == [f"adapterhub: {__version__} then, 9.9 now"]
    assert "torch: not recorded then" in " ".join(unlike({}, again))
