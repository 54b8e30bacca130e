"""Patches made of two checkpoints: the error they tell is the error they have, and folding them gives that back."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.merging import extract, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, ShapeMismatch, UnknownSite
from tests.merging import tiny
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import fold

FORMS = ("lora:r=4", "lora:energy=0.9", "sparse:density=0.1", "mask", "bitdelta", "xor", "dense")


def pair(tmp_path: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    make = ARCHITECTURES["llama"].make
    return tiny.saved(make(dtype=dtype), tmp_path / "base"), tiny.saved(make(seed=1, dtype=dtype), tmp_path / "tuned")


def run(base: Path, tuned: Path, form: str, out: Path) -> tuple[list[extract.Extracted], str]:
    return extract.extract(
        Checkpoint.open(LocalFolder(base)), Checkpoint.open(LocalFolder(tuned), name="tuned"), form, out
    )


@pytest.mark.parametrize("form", FORMS)
def test_folding_what_was_extracted_leaves_the_error_that_was_told(form: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    rows, _ = run(base, tuned, form, tmp_path / "patch")
    folded, before, there = (
        load_file(one / "model.safetensors") for one in (fold(base, tmp_path / "patch", tmp_path / "out"), base, tuned)
    )
    assert {row.site for row in rows} == {name for name in before if not torch.equal(before[name], there[name])}
    for row in rows:
        delta = there[row.site].double() - before[row.site].double()
        left = float((folded[row.site].double() - there[row.site].double()).norm() / delta.norm())
        assert row.norm == pytest.approx(float(delta.norm()), rel=1e-12)
        assert row.error == pytest.approx(left, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_bits_give_the_tuned_model_back(dtype: torch.dtype, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, dtype)
    run(base, tuned, "xor", tmp_path / "patch")
    folded = load_file(fold(base, tmp_path / "patch", tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(folded[name], W) for name, W in load_file(tuned / "model.safetensors").items())


def test_ranks_are_the_smallest_that_keep_the_energy(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    rows, _ = run(base, tuned, "lora:energy=0.9", tmp_path / "patch")
    before, there = (load_file(one / "model.safetensors") for one in (base, tuned))
    for row in rows:
        if row.rank is None:
            continue
        S = np.linalg.svd((there[row.site].double() - before[row.site].double()).numpy(), compute_uv=False)
        assert (S[: row.rank] ** 2).sum() >= 0.9 * (S**2).sum() * (1 - 1e-12)
        assert (S[: row.rank - 1] ** 2).sum() < 0.9 * (S**2).sum()


@pytest.mark.parametrize("form", FORMS)
def test_equal_inputs_give_equal_bytes(form: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    digests = [run(base, tuned, form, tmp_path / name)[1] for name in ("one", "two")]
    files = [hashlib.sha256((tmp_path / one / "patch.safetensors").read_bytes()).hexdigest() for one in ("one", "two")]
    assert digests[0] == digests[1]
    assert files[0] == files[1]
    (facts,) = patches.inspect(LocalFolder(tmp_path / "one"))
    assert facts.problems == ()
    assert facts.base.fingerprint is not None


@pytest.mark.parametrize(
    "form", ["magic", "lora", "lora:r=0", "lora:r=1.5", "lora:r=inf", "lora:r=x", "mask=1", "lora:energy=0"]
)
def test_a_form_that_is_none_is_refused(form: str, tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    with pytest.raises(InvalidParameter):
        run(base, tuned, form, tmp_path / "patch")
    assert not (tmp_path / "patch").exists()


def test_models_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    with pytest.raises(InvalidPatch, match="nothing to extract"):
        run(base, base, "dense", tmp_path / "patch")
    values = load_file(tuned / "model.safetensors")
    name = next(iter(values))
    for changed, refusal in (
        (values | {"other": torch.zeros(2)}, UnknownSite),
        (values | {name: torch.zeros(2, 2, 2)}, ShapeMismatch),
        ({key: W for key, W in values.items() if key != name}, InvalidPatch),
        (values | {name: values[name] * torch.nan}, InvalidPatch),
    ):
        save_file(changed, tuned / "model.safetensors")
        with pytest.raises(refusal):
            run(base, tuned, "dense", tmp_path / "patch")
        assert not (tmp_path / "patch" / "patch.json").exists()


@pytest.mark.parametrize("form", ["mask", "dense", "xor", "sparse:density=1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_half_tuned_model_only_what_moved_is_kept(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """HFT (arXiv:2404.18466) trains half of the parameters of each block and leaves the others."""
    base, tuned = pair(tmp_path, dtype)
    before, there = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    moved = {name for number, name in enumerate(sorted(before)) if number % 2 and before[name].dim() == 2}
    half = {name: there[name] if name in moved else before[name] for name in before}
    save_file(half, tuned / "model.safetensors", {"format": "pt"})
    rows, _ = run(base, tuned, form, tmp_path / "patch")
    (facts,) = patches.inspect(LocalFolder(tmp_path / "patch"))
    assert (
        {row.site for row in rows} == {one.site for one in patches.read(LocalFolder(tmp_path / "patch")).terms} == moved
    )
    assert sum(facts.layers.values()) == len(moved)
    found = load_file(fold(base, tmp_path / "patch", tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(found[name], before[name]) for name in before.keys() - moved)
    assert all(torch.equal(found[name], there[name]) for name in moved if form == "xor" or dtype != torch.float32)
