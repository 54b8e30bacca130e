"""LT-SFT's and BitDelta's pickles become native patches with the same numbers, as their own code decodes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.encodings import decode_indices, pack_bits, unpack_bits
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.pickled_deltas import sparse_term, to_native
from adapterhub.merging.site_deltas import site_deltas
from tests.merging.build import handle, random
from tests.merging.exactness.compare import record

SITE = "bert.encoder.layer.0.attention.self.query.weight"


def thinned(*shape: int, seed: int = 0) -> torch.Tensor:
    """A delta that is zero in most places."""
    delta = random(*shape, seed=seed)
    return delta * (random(*shape, seed=seed + 1) > 0.8)


def steps(delta: torch.Tensor) -> dict[str, Any]:
    """The encoding of composable-sft: column-major positions, ascending, as differences."""
    flat = delta.numpy().flatten(order="F")
    positions = np.flatnonzero(flat)
    return {
        "size": list(delta.shape),
        "index_steps": np.diff(positions, prepend=0).tolist(),
        "values": torch.tensor(flat[positions]),
    }


def lists(delta: torch.Tensor) -> dict[str, Any]:
    sparse = delta.to_sparse().coalesce()
    return {"size": list(delta.shape), "indices": sparse.indices().tolist(), "values": sparse.values().tolist()}


VERSIONS: dict[str, tuple[str, str, Any]] = {
    "steps": ("diffs", "abs", steps),
    "body and head": ("body", "head", steps),
    "lists": ("diffs", "abs", lists),
    "sparse tensors": ("body", "head", lambda delta: delta.to_sparse().coalesce()),
}


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_of_lt_sft_adds_the_same_numbers(version: str, tmp_path: Path) -> None:
    body, head, encode = VERSIONS[version]
    deltas = {SITE: thinned(6, 5), "bert.embeddings.LayerNorm.bias": thinned(9, seed=4)}
    (tmp_path / "in").mkdir()
    encoded = {name: encode(delta) for name, delta in deltas.items()}
    torch.save({body: encoded}, tmp_path / "in" / "pytorch_diff.bin")
    name, terms = to_native(LocalFolder(tmp_path / "in"), "pytorch_diff.bin", tmp_path / "out")
    assert (name, set(terms.values())) == ("LT-SFT", {"sparse"})
    found = site_deltas(patches.read(LocalFolder(tmp_path / "out")))
    worst = 0.0
    for site, delta in deltas.items():
        worst = max(worst, float((found[site].dense(torch.zeros_like(delta).double()) - delta.double()).abs().max()))
    record("sparse (LT-SFT)", "bert", "float32", "float64 formula (composable-sft)", worst, "read")
    assert worst == 0.0
    torch.save({body: encoded, head: {"classifier.weight": random(2, 3)}}, tmp_path / "in" / "pytorch_diff.bin")
    _, terms = to_native(LocalFolder(tmp_path / "in"), "pytorch_diff.bin", tmp_path / "with-head")
    assert terms["classifier.weight"] == "replace"
    stored = load_file(tmp_path / "with-head" / "patch.safetensors")
    assert torch.equal(stored["classifier.weight::t0.value"], random(2, 3))


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), depth=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=100)
def test_first_dimension_fastest_is_undone_for_any_shape(rows: int, columns: int, depth: int, seed: int) -> None:
    delta = thinned(rows, columns, depth, seed=seed)
    encoded = {name: torch.as_tensor(value) for name, value in steps(delta).items()}
    whole = ("size", "index_steps")
    fields = {name: handle(one.long() if name in whole else one, name) for name, one in encoded.items()}
    term = sparse_term("a", fields)
    arrays = {name: array for name, (_, array) in term.fields.items()}
    found = np.zeros(delta.numel(), "f4")
    found[decode_indices(term.options["index"], arrays, term.shape)] = arrays["val"]
    assert np.array_equal(found.reshape(delta.shape), delta.numpy())


def packed(mask: torch.Tensor) -> torch.Tensor:
    """BitDelta's pack of a (in, out) mask: words along the first dimension, lowest bit first."""
    words = mask.long().view(-1, 32, mask.shape[1])
    total = (words << torch.arange(32)[None, :, None]).sum(1)
    return torch.where(total >= 2**31, total - 2**32, total).int()


@pytest.mark.parametrize("coeff", [0.25, -0.25])
def test_bitdelta_keeps_each_sign_and_its_scale(coeff: float, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    mask = random(6, 64) >= 0  # (out, in)
    module = "model.layers.0.mlp.up_proj"
    A, B = random(8, 2, seed=2), random(2, 5, seed=3)
    content = {
        f"{module}.mask": packed(mask.T),
        f"{module}.coeff": torch.tensor(coeff),
        "model.layers.0.self_attn.q_proj.A": A,
        "model.layers.0.self_attn.q_proj.B": B,
        "model.norm.weight": random(4),
    }
    torch.save(content, tmp_path / "in" / "diff.pt")
    name, terms = to_native(LocalFolder(tmp_path / "in"), "diff.pt", tmp_path / "out")
    assert name == "BitDelta"
    assert terms == {
        f"{module}.weight": "signs",
        "model.layers.0.self_attn.q_proj.weight": "lowrank",
        "model.norm.weight": "replace",
    }
    stored = load_file(tmp_path / "out" / "patch.safetensors")
    bits = unpack_bits(stored[f"{module}.weight::t0.sign"][0].numpy(), 6 * 64).reshape(6, 64)
    scale = stored[f"{module}.weight::t0.scale"]
    assert scale.shape == (1, 1, 1)
    delta = np.where(bits, 1.0, -1.0) * scale.double().item()
    expected = coeff * (2.0 * mask.double().numpy() - 1)
    worst = float(np.abs(delta - expected).max())
    record("signs (BitDelta)", "llama", "float32", "float64 formula (arXiv:2402.10193 eq. 1)", worst, "read")
    assert worst == 0.0
    q_proj = "model.layers.0.self_attn.q_proj.weight::t0"
    product = stored[f"{q_proj}.B"].double() @ stored[f"{q_proj}.A"].double()
    assert torch.allclose(product, (A.double() @ B.double()).T, atol=1e-12)
    manifest = json.loads((tmp_path / "out" / "patch.json").read_text())
    assert manifest["kind"] == "sum"
    assert manifest["provenance"]["source_format"] == "BitDelta"
    assert pack_bits(bits).tobytes() == stored[f"{module}.weight::t0.sign"].numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"diffs": {"a": {"size": [2, 2], "index_steps": [0, 9], "values": torch.ones(2)}}}, "outside"),
        ({"diffs": {"a": {"size": [2, 2], "index_steps": [1], "values": torch.ones(2)}}}, "values for"),
        ({"diffs": {"a": {"size": [2, 2], "values": torch.ones(2)}}}, "no index_steps"),
        ({"diffs": {"a": {"index_steps": [1], "values": torch.ones(1)}}}, "has no size"),
        ({"diffs": {"a": {"size": [2, -2], "index_steps": [1], "values": torch.ones(1)}}}, "above 0"),
        ({"diffs": {"a": {"size": [2, 2], "indices": [[0], [7]], "values": [1.0]}}}, "outside"),
        ({"diffs": {"a": steps(torch.ones(2))}, "abs": {"a": torch.ones(2)}}, "both replaced and changed"),
        ({"m.mask": torch.ones(2, 3), "m.coeff": torch.ones(1)}, "mask is F32"),
        ({"weight": torch.ones(2)}, "no delta of LT-SFT, BitDelta"),
    ],
)
def test_a_delta_that_contradicts_itself_is_refused(content: Any, problem: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_diff.bin")
    with pytest.raises(InvalidPatch, match=r"pytorch_diff\.bin: ") as refused:
        to_native(LocalFolder(tmp_path), "pytorch_diff.bin", tmp_path / "out")
    assert problem in str(refused.value)
    assert not (tmp_path / "out").exists()
