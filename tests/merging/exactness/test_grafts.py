"""Graft masks in the trainer's pickles, against its own formula: W + round(s + (1 - 2s) σ(S - b)) (W_ft - W)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapterhub.merging import grafts
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, MergingError
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, fold, record, roundings

pytestmark = pytest.mark.slow

BIAS, DENSITY = 2.0, 0.05


def opened(path: Path) -> Checkpoint:
    return Checkpoint.open(LocalFolder(path))


def grafted(
    W: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], S: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The trainer's create_basepatch and interpolate_model."""
    moved = {name: (tuned[name].float() - W[name].float()).abs() for name in S}
    every = torch.cat([one.flatten() for one in moved.values()]).sort(descending=True).values
    least = every[: int(DENSITY * len(every))].min()
    found = {name: one.double() for name, one in W.items()}
    for name, one in S.items():
        s = (moved[name] > least).float()
        γ = torch.round(s + (1.0 - 2.0 * s) * torch.sigmoid(one - BIAS))
        assert 0 < γ.sum() < γ.numel()
        found[name] = found[name] + γ.double() * (tuned[name].double() - W[name].double())
    return found


def pickled(folder: Path, S: Any, names: list[str], **more: Any) -> grafts.Graft:
    folder.mkdir()
    torch.save(S, folder / "mask.pt")
    said = {"names": names, "sigmoid_bias": BIAS, "density": DENSITY, **more}
    (folder / "graft.json").write_text(json.dumps(said))
    return grafts.read_graft(LocalFolder(folder), "graft.json")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_trainer_s_mask_folds_by_its_formula(name: str, dtype: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[name].make(dtype=DTYPES[dtype])
    names = [key for key, one in model.named_parameters() if one.dim() == 2 and "embed" not in key]
    base = tiny.saved(model, tmp_path / "base")
    tuned = tiny.saved(ARCHITECTURES[name].make(seed=1, dtype=DTYPES[dtype]), tmp_path / "tuned")
    before, there = (load_file(one / "model.safetensors") for one in (base, tuned))
    names = [one for one in names if one in before]
    S = {one: random(*before[one].shape, seed=number) * 2 for number, one in enumerate(names)}
    graft = pickled(tmp_path / "mask", list(S.values()), names)
    terms = grafts.to_native(
        LocalFolder(tmp_path / "mask"), "mask.pt", graft, opened(base), opened(tuned), tmp_path / "patch"
    )
    assert terms == dict.fromkeys(names, "mask")
    found = load_file(fold(base, tmp_path / "patch", tmp_path / "out") / "model.safetensors")
    error = roundings(found, grafted(before, there, S), DTYPES[dtype])
    record("mask (graft)", name, dtype, "formula, float64 (graft_trainer.py)", error)
    assert error <= 1.0


@given(st.floats(-30, 30, width=32), st.booleans(), st.floats(0, 10, width=32))
def test_the_mask_is_torch_s_rounding_of_its_share(logit: float, started: bool, bias: float) -> None:
    s = torch.tensor([float(started)])
    share = torch.sigmoid(torch.tensor([logit]) - bias)
    expected = torch.round(s + (1.0 - 2.0 * s) * share)
    if abs(float(share) - 0.5) > 1e-6:  # there the last bit of exp decides
        assert grafts.mask(np.array([logit]), np.array([started]), bias).tolist() == (expected == 1).tolist()


@pytest.mark.parametrize(
    ("S", "more", "problem"),
    [
        ([torch.ones(16, 16)], {"names": []}, "1 tensors for 0 names"),
        ({"w": torch.ones(2)}, {}, "a graft mask is a list of tensors"),
        ([torch.ones(3, 3)], {}, r"\(3, 3\)"),
        ([torch.ones(16, 16)], {"names": ["nowhere"]}, "nowhere"),
        ([torch.full((16, 16), -9.0)], {"density": 0}, "selects no entry"),
        ([torch.ones(16, 16)], {"density": 2}, "density is 2"),
        ([torch.ones(16, 16)], {"seed": 2}, "has density, names, seed, sigmoid_bias"),
        ([torch.ones(16, 16)], {"names": ["a", "a"]}, "no list of different texts"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    S: Any, more: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    site = "model.layers.0.self_attn.q_proj.weight"
    base = opened(tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "base"))
    tuned = opened(tiny.saved(ARCHITECTURES["llama"].make(seed=1), tmp_path / "tuned"))

    def convert() -> None:
        graft = pickled(tmp_path / "mask", S, **{"names": [site], **more})
        grafts.to_native(LocalFolder(tmp_path / "mask"), "mask.pt", graft, base, tuned, tmp_path / "patch")

    with pytest.raises(MergingError, match=problem):
        convert()
    assert not (tmp_path / "patch").exists()


def test_a_description_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graft.json").write_text("[]")
    with pytest.raises(InvalidPatch, match=r"graft\.json"):
        grafts.read_graft(LocalFolder(tmp_path), "graft.json")
