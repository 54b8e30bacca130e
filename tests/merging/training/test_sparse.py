"""LT-SFT with a real Trainer: what is chosen, what stays, and what the patch folds to."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adapterhub.merging.errors import InvalidParameter, InvalidPatch
from adapterhub.merging.training.sparse import SparseTuning
from tests.merging import tiny
from tests.merging.exactness.compare import roundings
from tests.merging.training.loop import folded, saved, train, weights


@pytest.mark.parametrize("make", [tiny.llama, pytest.param(tiny.gpt2, marks=pytest.mark.slow)])
def test_only_the_entries_that_moved_most_move_and_the_patch_folds_to_them(make: object, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    base = saved(model, tmp_path / "base")
    start = weights(model)
    tuning = SparseTuning(model, entries=300)
    train(model, tmp_path, tuning)
    moved = torch.cat([(one - start[name]).abs().flatten() for name, one in weights(model).items()])
    expected = np.sort(np.argsort(-moved.numpy(), kind="stable")[:300])

    tuning.choose()
    assert all(torch.equal(one, start[name]) for name, one in weights(model).items())
    assert tuning.chosen is not None
    chosen = torch.cat([one.flatten() for one in tuning.chosen.values()])
    assert np.array_equal(chosen.nonzero().flatten().numpy(), expected)

    train(model, tmp_path, tuning)
    trained = weights(model)
    for name, one in trained.items():
        stays = ~tuning.chosen[name]
        assert torch.equal(one[stays], start[name][stays]), name
    assert sum(int((one != start[name]).sum()) for name, one in trained.items()) > 250
    tuning.write(tmp_path / "patch")
    found = folded(base, tmp_path / "patch", tmp_path / "out")
    assert roundings({name: found[name] for name in trained}, trained, torch.float32) <= 1.0


def test_frozen_parameters_are_no_part_of_it(tmp_path: Path) -> None:
    model = tiny.llama()
    for name, one in model.named_parameters():
        one.requires_grad_("mlp" in name)
    tuning = SparseTuning(model, entries=20)
    train(model, tmp_path, tuning)
    tuning.choose()
    assert tuning.chosen is not None
    assert all("mlp" in name for name in tuning.chosen)
    assert sum(int(one.sum()) for one in tuning.chosen.values()) == 20


def test_of_equally_large_moves_the_first_are_chosen() -> None:
    tuning = SparseTuning(tiny.llama(), entries=5)
    tuning.choose()
    assert tuning.chosen is not None
    assert torch.cat([one.flatten() for one in tuning.chosen.values()]).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_patch_of_nothing_and_one_before_its_choice_are_refused(tmp_path: Path) -> None:
    tuning = SparseTuning(tiny.llama(), entries=5)
    with pytest.raises(InvalidParameter, match="choose"):
        tuning.write(tmp_path / "patch")
    tuning.choose()
    with pytest.raises(InvalidPatch, match="at least one term"):
        tuning.write(tmp_path / "patch")
    with pytest.raises(InvalidParameter, match="entries is 0"):
        SparseTuning(tiny.llama(), entries=0)
