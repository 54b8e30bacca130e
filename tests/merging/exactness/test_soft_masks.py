"""Soft masks, one real factor a module or row of a delta (CoFiTune, arXiv:2404.10306): W + k m Δ in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from adapterhub.merging import native
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, fold, record, roundings


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1.0, -0.5])
@pytest.mark.parametrize("name", ["llama", "bert", "opt"])
def test_a_factor_of_each_module_s_delta_is_its_term_s_scale(
    name: str, weight: float, dtype: str, tmp_path: Path
) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before = load_file(base / "model.safetensors")
    expected, sites = {site: W.double() for site, W in before.items()}, {}
    for number, (site, W) in enumerate(before.items()):
        if W.dim() != 2:
            continue
        m, delta = number / len(before), random(*W.shape, seed=number) * 0.1
        sites[site] = native.term("dense", W.shape, scale=m, delta=delta.numpy())
        expected[site] = W.double() + weight * m * delta.double()
    native.write_patch(tmp_path / "patch", sites=sites, base={})
    out = fold(base, tmp_path / "patch", tmp_path / "out", text=f"base + {weight}*a" if weight > 0 else "base - 0.5*a")
    error = roundings(load_file(out / "model.safetensors"), expected, DTYPES[dtype])
    record("dense (soft mask a module)", name, dtype, "formula, float64", error)
    assert error <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_of_each_row_of_a_low_rank_delta_is_its_b(dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES["llama"].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before = load_file(base / "model.safetensors")
    expected, sites = {site: W.double() for site, W in before.items()}, {}
    for number, (site, W) in enumerate(before.items()):
        if not site.endswith("_proj.weight"):
            continue
        A, B = random(2, W.shape[1], seed=number) * 0.3, random(W.shape[0], 2, seed=number + 1) * 0.3
        m = random(W.shape[0], seed=number + 2).sigmoid()
        sites[site] = native.lowrank(A.numpy(), B.numpy(), b=m.numpy())
        expected[site] = W.double() + m.double()[:, None] * (B.double() @ A.double())
    native.write_patch(tmp_path / "patch", sites=sites, base={})
    found = load_file(fold(base, tmp_path / "patch", tmp_path / "out") / "model.safetensors")
    error = roundings(found, expected, DTYPES[dtype])
    record("lowrank (soft mask a row)", "llama", dtype, "formula, float64", error)
    assert error <= 1.0
