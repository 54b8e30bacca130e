"""Half fine-tuning with a real Trainer: which half is frozen, that it stays, and what the patch folds to."""

from pathlib import Path

import pytest
import torch

from adapterhub.merging.ops.halves import half_of_each_category
from adapterhub.merging.training.half import HalfTuning
from tests.merging import tiny
from tests.merging.exactness.compare import roundings
from tests.merging.training.loop import folded, saved, train, weights


@pytest.mark.parametrize("make", [tiny.llama, pytest.param(tiny.gpt2, marks=pytest.mark.slow)])
def test_half_of_the_model_stays_and_the_patch_folds_to_the_trained_one(make: object, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    base = saved(model, tmp_path / "base")
    start = weights(model)
    tuning = HalfTuning(model, seed=3)
    train(model, tmp_path, tuning)
    trained = weights(model)
    stayed = {name for name, one in trained.items() if torch.equal(one, start[name])}
    assert stayed == tuning.frozen
    assert all(one.requires_grad for one in model.parameters())
    tuning.write(tmp_path / "patch")
    found = folded(base, tmp_path / "patch", tmp_path / "out")
    assert roundings({name: found[name] for name in trained}, trained, torch.float32) <= 1.0
    assert all(torch.equal(found[name], start[name]) for name in stayed)


def test_a_bfloat16_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny.llama(dtype=torch.bfloat16)
    base = saved(model, tmp_path / "base")
    tuning = HalfTuning(model, seed=3)
    train(model, tmp_path, tuning)
    tuning.write(tmp_path / "patch")
    found = folded(base, tmp_path / "patch", tmp_path / "out")
    assert all(torch.equal(found[name], one) for name, one in weights(model).items())


@pytest.mark.parametrize("seed", range(5))
def test_each_category_of_each_block_is_halved(seed: int) -> None:
    names = [name for name, _ in tiny.llama().named_parameters()]
    frozen = half_of_each_category(names, seed=seed)
    for layer in range(2):
        inside = [name.removeprefix(f"model.layers.{layer}.") for name in frozen if f"layers.{layer}." in name]
        assert sum(name.startswith("self_attn.") for name in inside) == 2
        assert sum(name.startswith("mlp.") for name in inside) == 1 + layer % 2
        assert sum("layernorm" in name for name in inside) == 1
    assert not any("embed" in name or "lm_head" in name for name in frozen)


def test_a_bias_goes_with_its_matrix_and_the_seed_decides() -> None:
    names = [name for name, _ in tiny.bert().named_parameters()]
    frozen = half_of_each_category(names, seed=1)
    for name in frozen:
        assert name.rpartition(".")[0] + ".bias" in frozen
    assert frozen == half_of_each_category(names, seed=1)
    assert len({half_of_each_category(names, seed=seed) for seed in range(5)}) > 1
    assert frozen != half_of_each_category(names, seed=1, round=1)
