"""Training in few dimensions with a real Trainer: it learns, and the patch folds bit for bit."""

from pathlib import Path

import pytest
import torch
from torch.optim import SGD, AdamW

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.training.intrinsic import IntrinsicTuning
from tests.merging import tiny
from tests.merging.training.loop import TOKENS, folded, saved, train, weights


@pytest.mark.parametrize(
    ("make", "projection"),
    [(tiny.llama, "fastfood"), pytest.param(tiny.gpt2, "fastfood", marks=pytest.mark.slow), (tiny.llama, "dense")],
)
def test_the_trained_model_is_what_the_patch_folds_to(make: object, projection: str, tmp_path: Path) -> None:
    model = make()  # type: ignore[operator]
    base = saved(model, tmp_path / "base")
    start = weights(model)
    tuning = IntrinsicTuning(model, dimensions=10, seed=5, projection=projection)
    train(model, tmp_path, tuning, optimizer=tuning.optimizer(AdamW, lr=0.05))
    assert all(not torch.equal(one, start[name]) for name, one in weights(model).items())
    tuning.write(tmp_path / "patch")
    found = folded(base, tmp_path / "patch", tmp_path / "out")
    assert all(torch.equal(found[name], one) for name, one in weights(model).items())


def test_a_small_step_lowers_the_loss_as_its_gradient_says() -> None:
    model = tiny.llama()
    tokens = torch.tensor(TOKENS)
    tuning = IntrinsicTuning(model, dimensions=20, seed=5)
    optimizer = tuning.optimizer(SGD, lr=1e-2)
    before = model(input_ids=tokens, labels=tokens).loss
    before.backward()
    tuning.on_pre_optimizer_step()
    assert tuning.theta.grad is not None
    expected = -1e-2 * float(tuning.theta.grad.square().sum())
    optimizer.step()
    tuning.on_optimizer_step()
    with torch.no_grad():
        change = float(model(input_ids=tokens, labels=tokens).loss - before)
    assert change == pytest.approx(expected, rel=0.05)


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="0 dimensions"):
        IntrinsicTuning(tiny.llama(), dimensions=0, seed=1)
