"""Grafting with a real Trainer: the mask learns, the gradient at S is the paper's, and the patch folds bit for bit."""

from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from adapterhub.merging.training.masked import START, Grafting
from tests.merging import tiny
from tests.merging.training.loop import TOKENS, folded, saved, train, weights


@pytest.mark.parametrize("make", [tiny.llama, pytest.param(tiny.gpt2, marks=pytest.mark.slow)])
def test_the_learnt_graft_is_what_the_patch_folds_to(make: object, tmp_path: Path) -> None:
    tuned = make()  # type: ignore[operator]
    train(tuned, tmp_path)
    model = make()  # type: ignore[operator]
    base = saved(model, tmp_path / "base")
    start, ends = weights(model), weights(tuned)
    grafting = Grafting(model, dict(tuned.named_parameters()), entries=200)
    before = grafting.mask()
    assert sum(int(one.sum()) for one in before.values()) == 200
    least = min(float((ends[n] - start[n])[m].abs().min()) for n, m in before.items() if m.any())
    assert all(float((ends[n] - start[n])[~m].abs().max()) <= least for n, m in before.items())

    train(model, tmp_path, grafting, optimizer=grafting.optimizer(SGD, lr=3e5), max_steps=10)
    after = grafting.mask()
    assert any(not torch.equal(after[name], one) for name, one in before.items())
    for name, one in weights(model).items():
        assert torch.equal(one[~after[name]], start[name][~after[name]]), name
    grafting.write(tmp_path / "patch")
    found = folded(base, tmp_path / "patch", tmp_path / "out")
    assert all(torch.equal(found[name], one) for name, one in weights(model).items())


def test_the_gradient_at_s_is_that_of_the_relaxed_loss(tmp_path: Path) -> None:
    """Against autograd through the paper's γ of the whole model, in one piece."""
    tuned, model = tiny.llama(seed=1), tiny.llama(seed=0)
    grafting = Grafting(model, weights(tuned), entries=500)
    start, ends, first = weights(model), weights(tuned), grafting.mask()
    logits = {name: torch.full_like(one, START, requires_grad=True) for name, one in start.items()}
    grafted = {
        name: one
        + (first[name] * (1 - torch.sigmoid(logits[name])) + ~first[name] * torch.sigmoid(logits[name]))
        * (ends[name] - one)
        for name, one in start.items()
    }
    tokens = torch.tensor(TOKENS)
    torch.func.functional_call(model, grafted, (), {"input_ids": tokens, "labels": tokens}).loss.backward()

    optimizer = grafting.optimizer(SGD, lr=1.0)
    grafting.on_train_begin()
    model(input_ids=tokens, labels=tokens).loss.backward()
    grafting.on_pre_optimizer_step()
    found = [one.grad for one in optimizer.param_groups[0]["params"]]
    assert max(float(one.abs().max()) for one in found) > 0
    for one, (name, expected) in zip(found, logits.items(), strict=True):
        torch.testing.assert_close(one, expected.grad, rtol=1e-4, atol=1e-8, msg=name)
    assert all(one.grad is None for one in model.parameters())
