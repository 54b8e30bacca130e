"""S2-LoRA: factors that all matrices share, sparse coefficients of their ranks, against W + B diag(d) A in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapterhub.merging import native, patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.encodings import as_floats
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, fold, record, roundings

RANK = 6


def coefficients(seed: int) -> torch.Tensor:
    """Some of them zero; of seed 0 all."""
    d = random(RANK, seed=seed)
    return d * (random(RANK, seed=seed + 100) > 0.3) if seed else torch.zeros(RANK)


def write(folder: Path, ds: dict[str, torch.Tensor], shapes: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """The patch, with what it adds to each parameter."""
    A, B = random(RANK, 32, seed=1) * 0.3, random(32, RANK, seed=2) * 0.3
    shared = {"A": "all.A", "B": "all.B"}
    sites = {name: native.term("lowrank", shapes[name], shared=shared, d=d.numpy()) for name, d in ds.items()}
    native.write_patch(folder, sites=sites, base={}, shared={"all": {"A": A.numpy(), "B": B.numpy()}})
    deltas = {}
    for name, d in ds.items():
        out, fan_in = shapes[name]
        deltas[name] = B[:out].double() @ torch.diag(d.double()) @ A[:, :fan_in].double()
    return deltas


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_shared_factors_with_sparse_coefficients_fold_by_the_formula(name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before = load_file(base / "model.safetensors")
    ends = ("q_proj.weight", "v_proj.weight", "k_proj.weight", "out_proj.weight")
    shapes = {site: (W.shape[0], W.shape[1]) for site, W in before.items() if site.endswith(ends)}
    ds = {site: coefficients(number) for number, site in enumerate(shapes)}
    deltas = write(tmp_path / "patch", ds, shapes)
    expected = {site: W.double() + deltas.get(site, 0.0) for site, W in before.items()}
    found = load_file(fold(base, tmp_path / "patch", tmp_path / "out") / "model.safetensors")
    error = roundings(found, expected, DTYPES[dtype])
    record("lowrank_shared (S2-LoRA)", name, dtype, "formula, float64", error)
    assert error <= 1.0


@settings(max_examples=25)
@given(kept=st.lists(st.booleans(), min_size=RANK, max_size=RANK))
def test_ranks_without_a_coefficient_are_dropped_and_nothing_is_lost(
    kept: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("patch")
    d = torch.tensor([0.5 + number if one else 0.0 for number, one in enumerate(kept)])
    deltas = write(folder, {"w": d}, {"w": (8, 5)})
    found = patches.read(LocalFolder(folder)).terms
    assert [one.fields["d"].numel for one in found] == ([sum(kept)] if any(kept) else [])
    for term in found:
        A, B, few = (as_floats(term.fields[name]) for name in ("A", "B", "d"))
        np.testing.assert_allclose((B * few) @ A, deltas["w"].numpy(), rtol=0, atol=1e-15)
