"""Native patches and full models on every architecture, against their formulas in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapterhub.merging import native
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, fold, record, roundings

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def sparse(W: torch.Tensor, seed: int) -> tuple[native.StoredTerm, torch.Tensor]:
    delta = random(*W.shape, seed=seed) * 0.1 * (random(*W.shape, seed=seed + 1) > 1)
    return native.sparse(delta.numpy()), delta.double()


def mask(W: torch.Tensor, seed: int) -> tuple[native.StoredTerm, torch.Tensor]:
    selected, delta = random(*W.shape, seed=seed) > 0, random(*W.shape, seed=seed + 1) * 0.1
    return native.select(selected.numpy(), delta.numpy()), selected.double() * delta.double()


KINDS: dict[str, Any] = {"sparse": (sparse,), "mask": (mask,), "sum": (sparse, mask)}


@every_dtype
@every_architecture
@pytest.mark.parametrize("kind", KINDS)
def test_native_patches_fold_to_their_formula(kind: str, name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before = weights(base)
    expected = {site: W.double() for site, W in before.items()}
    sites: dict[str, list[native.StoredTerm]] = {}
    for number, site in enumerate(one for one in before if before[one].dim() == 2):
        for make in KINDS[kind]:
            term, delta = make(before[site], 10 * number)
            if kind != "mask" and not np.any(delta.numpy()):
                continue  # a matrix so small that no entry was drawn
            sites.setdefault(site, []).append(term)
            expected[site] = expected[site] + delta
    native.write_patch(tmp_path / "patch", sites=sites, base={"repo_id": "tiny/base"})
    error = roundings(weights(fold(base, tmp_path / "patch", tmp_path / "out")), expected, DTYPES[dtype])
    record(kind, name, dtype, "formula, float64", error)
    assert error <= 1.0


@every_dtype
@every_architecture
def test_a_full_model_stands_for_its_difference_from_the_base(name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    tuned = tiny.saved(ARCHITECTURES[name].make(seed=1, dtype=DTYPES[dtype]), tmp_path / "tuned")
    before, there = weights(base), weights(tuned)
    expected = {
        site: W.double() + 0.25 * (there[site].double() - W.double()) if W.is_floating_point() else W
        for site, W in before.items()
    }
    found = weights(fold(base, tuned, tmp_path / "out", text="base + 0.25*a"))
    error = roundings(found, expected, DTYPES[dtype])
    record("model", name, dtype, "formula, float64", error)
    assert error <= 1.0
