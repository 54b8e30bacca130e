"""MeZO with a real Trainer: its steps are recorded number for number, and the gradient is the directional one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.native import read_patch
from adapterhub.merging.ops.philox import Stream
from adapterhub.merging.training.zeroth_order import ZerothOrderTrainer
from tests.merging import tiny
from tests.merging.training.loop import TOKENS, arguments, folded, saved, weights

DATA: Any = [{"input_ids": row, "labels": row} for row in TOKENS]


@pytest.mark.parametrize("make", [tiny.llama, pytest.param(tiny.gpt2, marks=pytest.mark.slow)])
def test_the_replayed_steps_give_the_trained_model_bit_for_bit(make: object, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    base = saved(model, tmp_path / "base")
    start = weights(model)
    trainer = ZerothOrderTrainer(model, arguments(tmp_path, max_steps=8), train_dataset=DATA, seed=11)
    trainer.train()
    trainer.write(tmp_path / "patch")
    found = folded(base, tmp_path / "patch", tmp_path / "out")
    for name, one in weights(model).items():
        assert not torch.equal(one, start[name]), name
        assert torch.equal(found[name], one), name


def test_a_step_records_the_directional_derivative(tmp_path: Path) -> None:
    model = tiny.llama()
    tokens = torch.tensor(TOKENS)
    model(input_ids=tokens, labels=tokens).loss.backward()
    expected = 0.0
    for name, one in model.named_parameters():
        z = torch.from_numpy(Stream.of(11, name).rademacher(0, one.numel())).view(one.shape)
        assert one.grad is not None
        expected += float((one.grad.double() * z).sum())
    model.zero_grad()
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=16)
    trainer = ZerothOrderTrainer(model, args, train_dataset=DATA, seed=11)
    trainer.train()
    trainer.write(tmp_path / "patch")
    [g] = torch.frombuffer(
        bytearray(read_patch(LocalFolder(tmp_path / "patch")).terms[0].fields["g"].read()), dtype=torch.float32
    )
    assert float(g) == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = tiny.llama()
    model.lm_head.weight.requires_grad_(False)
    start = weights(model)
    ZerothOrderTrainer(model, arguments(tmp_path), train_dataset=DATA, seed=11).train()
    assert torch.equal(model.lm_head.weight, start["lm_head.weight"])


def test_what_could_not_be_replayed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="accumulation"):
        ZerothOrderTrainer(tiny.llama(), arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=DATA, seed=1)
    with pytest.raises(InvalidParameter, match="not float32"):
        ZerothOrderTrainer(tiny.llama(dtype=torch.bfloat16), arguments(tmp_path), train_dataset=DATA, seed=1)
    with pytest.raises(InvalidParameter, match="no step"):
        ZerothOrderTrainer(tiny.llama(), arguments(tmp_path), train_dataset=DATA, seed=1).write(tmp_path / "patch")
