"""Masks of many tasks over one delta that they share (TALL masks, EMR), against W + k m ⊙ Δ in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapterhub.merging import native
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, record, roundings

RESCALED = 1.25
"""EMR's factor of one task."""


def tasks(base: Path, root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """A shared delta in `root`/shared and masks over it in `root`/one and two; what each stands for, by parameter."""
    weights = {name: W for name, W in load_file(base / "model.safetensors").items() if W.dim() == 2}
    deltas = {name: random(*W.shape, seed=number) * 0.1 for number, (name, W) in enumerate(weights.items())}
    dense = {name: native.term("dense", one.shape, delta=one.numpy()) for name, one in deltas.items()}
    digest = native.write_patch(root / "shared", sites=dense, base={})
    found = {}
    for number, task in enumerate(("one", "two")):
        chosen = {name: random(*one.shape, seed=50 + number + one.numel()) > 0.5 for name, one in deltas.items()}
        sites = {name: over(digest, bits.numpy(), RESCALED) for name, bits in chosen.items()}
        native.write_patch(root / task, sites=sites, base={})
        found[task] = {name: RESCALED * bits.double() * deltas[name].double() for name, bits in chosen.items()}
    return found


def over(digest: str, selected: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], scale: float) -> native.StoredTerm:
    bits = native.prune(selected).fields["bits"]
    return native.term("mask", selected.shape, scale=scale, options={"mode": "select"}, delta_ref=digest, bits=bits)


def folded(text: str, base: Path, root: Path, out: Path) -> dict[str, torch.Tensor]:
    kinds = {"base": "model", "shared": "dense", "one": "mask", "two": "mask"}
    places = {name: base if name == "base" else root / name for name in kinds}
    inputs = {
        Ref(name): Input(f"{name}@{'0' * 40}", LocalFolder(places[name]), kind=kind)
        for name, kind in kinds.items()
        if name in text
    }
    run(plan(parse(text), inputs, memory_bytes=1 << 30), out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "bert", "vit", "whisper"])
def test_masks_of_two_tasks_over_one_delta_fold_by_the_formula(name: str, dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES[name].make(dtype=DTYPES[dtype]), tmp_path / "base")
    before, stand = load_file(base / "model.safetensors"), tasks(base, tmp_path)
    expected = {site: W.double() for site, W in before.items()}
    for site in stand["one"]:
        expected[site] = expected[site] + stand["one"][site] + 0.5 * stand["two"][site]
    found = folded("base + 0*shared + one + 0.5*two", base, tmp_path, tmp_path / "out")
    error = roundings(found, expected, DTYPES[dtype])
    record("mask (shared delta)", name, dtype, "formula, float64", error)
    assert error <= 1.0


def test_a_mask_whose_delta_was_not_given_is_refused_by_its_digest(tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "base")
    tasks(base, tmp_path)
    with pytest.raises(NotFoldable, match=r"its delta from patch sha256:[0-9a-f]{64}, which is neither in this rep"):
        folded("base + one", base, tmp_path, tmp_path / "out")
