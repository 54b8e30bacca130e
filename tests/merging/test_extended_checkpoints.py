"""DSEE's and LoFiT's checkpoints become native patches with the numbers that their own forward passes use."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.native_runtime import read_runtime
from adapterhub.merging.pickled_deltas import to_native
from adapterhub.merging.representations import LOFIT
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, fold, record, roundings

ALPHA, RANK = 16, 3
QUERY = "bert.encoder.layer.0.attention.self.query"
VALUE = "bert.encoder.layer.1.attention.self.value"
DENSE = "bert.encoder.layer.0.intermediate.dense"


def dsee(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of a DSEE run on the model: two factors and a sparse part, pruned weights, a new head."""
    state = {name: value.float() for name, value in model.state_dict().items()}
    for number, module in enumerate((QUERY, VALUE)):
        out, inner = state[f"{module}.weight"].shape
        state[f"{module}_lora_a.weight"] = random(RANK, inner, seed=number)
        state[f"{module}_lora_b.weight"] = random(out, RANK, seed=number + 5)
        state[f"{module}_lora_s.weight_orig"] = random(out, inner, seed=number + 9)
        state[f"{module}_lora_s.weight_mask"] = (random(out, inner, seed=number + 20) > 1).float()
    for module in (VALUE, DENSE):
        weight = state.pop(f"{module}.weight")
        state[f"{module}.weight_orig"] = weight
        state[f"{module}.weight_mask"] = (random(*weight.shape, seed=30) > -0.5).float()
    state["classifier.weight"] = random(*state["classifier.weight"].shape, seed=40)
    return state


def expected(base: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W ⊙ mask + alpha / r · (B·A + S ⊙ mask) in float64."""
    found = {name: value.double() for name, value in base.items()}
    for module in (VALUE, DENSE):
        found[f"{module}.weight"] *= state[f"{module}.weight_mask"].double()
    for module in (QUERY, VALUE):
        a, b = (state[f"{module}_lora_{which}.weight"].double() for which in "ab")
        s = state[f"{module}_lora_s.weight_orig"].double() * state[f"{module}_lora_s.weight_mask"].double()
        found[f"{module}.weight"] += ALPHA / RANK * (b @ a + s)
    found["classifier.weight"] = state["classifier.weight"].double()
    return found


@pytest.mark.parametrize("pickled", [True, False], ids=["pickled", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dsee_folds_by_its_formula(dtype: str, pickled: bool, tmp_path: Path) -> None:
    architecture = ARCHITECTURES["bert"]
    model = architecture.make(dtype=DTYPES[dtype])
    state = dsee(model)
    source = tmp_path / "dsee"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "bert", "lora_alpha": ALPHA, "lora_r": RANK}))
    name = "pytorch_model.bin" if pickled else "model.safetensors"
    torch.save(state, source / name) if pickled else save_file(state, source / name)
    found, terms = to_native(LocalFolder(source), name, tmp_path / "patch")
    assert found == "DSEE"
    assert terms[f"{VALUE}.weight"] == "prune + lowrank + sparse"
    assert terms[f"{DENSE}.weight"] == "prune"
    base = tiny.saved(model, tmp_path / "base")
    merged = architecture.loader.from_pretrained(fold(base, tmp_path / "patch", tmp_path / "out"))
    error = roundings(merged.state_dict(), expected(model.state_dict(), state), DTYPES[dtype])
    record("sum (DSEE)", "bert", dtype, "float64 formula (DSEE BertSelfAttention)", error)
    assert error <= 1.0


def test_dsee_without_its_alpha_is_refused(tmp_path: Path) -> None:
    save_file(dsee(ARCHITECTURES["bert"].make()), tmp_path / "model.safetensors")
    with pytest.raises(InvalidPatch, match=r"query: config.json says lora_alpha None .* put the config.json"):
        to_native(LocalFolder(tmp_path), "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lofits_heads_become_a_patch_of_its_kind(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"].make()
    state = dict(model.state_dict())
    attention = "model.layers.1.self_attn"
    state |= {f"{attention}.attn_A.2": random(4, seed=1), f"{attention}.attn_v.0": random(4, seed=2)}
    tiny.saved(model, tmp_path / "lofit")
    save_file({name: one.contiguous() for name, one in state.items()}, tmp_path / "lofit" / "model.safetensors")
    (facts,) = patches.inspect(LocalFolder(tmp_path / "lofit"))
    assert "holds what LoFiT trained" in facts.problems[0]
    found, terms = to_native(LocalFolder(tmp_path / "lofit"), "model.safetensors", tmp_path / "patch")
    assert (found, terms) == ("LoFiT", {f"{attention}.o_proj": "lofit"})
    patch = read_runtime(LocalFolder(tmp_path / "patch"), "", LOFIT)
    A, v = (
        torch.frombuffer(bytearray(patch.modules[f"{attention}.o_proj"][one].read()), dtype=torch.float32)
        for one in "Av"
    )
    assert torch.equal(A.view(4, 4)[2], random(4, seed=1))
    assert torch.equal(v.view(4, 4)[0], random(4, seed=2))
    assert int((A != 0).sum()) == int((v != 0).sum()) == 4
