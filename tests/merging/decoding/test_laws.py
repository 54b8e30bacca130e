"""Laws that the operators of decoding keep, and what they say of themselves."""

import math
from typing import Any

import pytest
import torch

from adapterhub.merging.decoding import contrast, ensemble, operators
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import methods
from adapterhub.merging.registry import OperatorSpec

OPERATORS = sorted(operators())
STEERING = ["eft", "fusion", "proxy"]


def logits_of(spec: OperatorSpec, others: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = bool(spec.first) + len(spec.named) + (others or spec.count[0])
    return 3 * torch.randn(count, 50, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def composed(name: str, logits: torch.Tensor, **told: Any) -> torch.Tensor:
    spec = operators()[name]
    others = logits.shape[0] - bool(spec.first) - len(spec.named)
    return spec.function(logits, [1.0] * others, spec.parameters(**told))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_have_the_shape_and_dtype_of_logits_which_stay(name: str, dtype: torch.dtype) -> None:
    logits = logits_of(operators()[name], dtype=dtype)
    before = logits.clone()
    found = composed(name, logits)
    assert (found.shape, found.dtype) == (logits.shape[1:], dtype)
    assert torch.equal(logits, before)
    assert torch.equal(found, composed(name, logits))
    assert not found.isnan().any()


@pytest.mark.parametrize("name", OPERATORS)
def test_a_constant_on_a_members_logits_means_nothing(name: str) -> None:
    logits = logits_of(operators()[name], dtype=torch.float64)
    moved = logits + torch.arange(len(logits))[:, None]
    assert torch.allclose(composed(name, logits).softmax(-1), composed(name, moved).softmax(-1))


@pytest.mark.parametrize("name", STEERING)
def test_experts_that_are_the_base_leave_the_large_model_as_it_is(name: str) -> None:
    logits = logits_of(operators()[name])
    logits[2:] = logits[1]
    assert torch.allclose(composed(name, logits).softmax(-1), logits[0].softmax(-1))


@pytest.mark.parametrize(("name", "told"), [("proxy", {"alpha": 0.0}), ("eft", {"beta": 0.0}), ("fusion", {"most": 0})])
def test_a_factor_of_0_leaves_the_large_model_as_it_is(name: str, told: dict[str, float]) -> None:
    logits = logits_of(operators()[name])
    assert torch.allclose(composed(name, logits, **told).softmax(-1), logits[0].softmax(-1))


@pytest.mark.parametrize("name", ["eft", "proxy"])
def test_a_large_model_that_is_the_base_becomes_the_expert(name: str) -> None:
    logits = logits_of(operators()[name])
    logits[0] = logits[1]
    assert torch.allclose(composed(name, logits).softmax(-1), logits[2].softmax(-1), atol=1e-6)


@pytest.mark.parametrize("space", ["logits", "probs", "logprobs"])
def test_an_ensemble_of_one_is_that_one(space: str) -> None:
    logits = logits_of(operators()["ensemble"])
    assert torch.allclose(composed("ensemble", logits, space=space).softmax(-1), logits[0].softmax(-1))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_contrast_keeps_plausible_tokens_alone(alpha: float) -> None:
    logits = logits_of(operators()["contrast"])
    strong = logits[0].softmax(-1)
    found = composed("contrast", logits, alpha=alpha)
    assert torch.equal(found > -math.inf, strong >= alpha * strong.max())
    assert (found > -math.inf).sum() >= 1


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="add up to 0"):
        ensemble.check([1.0, -1.0], ensemble.Parameters())
    with pytest.raises(InvalidParameter, match="negative; with space=logits"):
        ensemble.check([1.0, -0.5], ensemble.Parameters("probs"))
    ensemble.check([1.0, -0.5], ensemble.Parameters())
    contrast.SPEC.check([1.0], contrast.Parameters())


def test_no_operator_is_called_as_a_merge_method_is() -> None:
    assert not set(OPERATORS) & {*methods(), "delta", "stack"}


def test_an_operator_says_how_it_is_written() -> None:
    assert operators()["proxy"].usage == "proxy(large; expert, ..., anti=NAME, alpha=1)"
    assert operators()["ensemble"].usage == "ensemble(model, ..., space=logits)"
    assert operators()["contrast"].usage == "contrast(strong; weak, alpha=0.1, beta=1, temperature=1)"
