"""Each operator against the formula of its paper, written with numpy in float64; one that is not here fails."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.decoding import contrast, eft, ensemble, fusion, operators, proxy
from tests.merging.decoding.formulas import FORMULAS, Array, averaged, contrasted, emulated, fused, misses, proxied


def drawn(count: int, size: int, seed: int, scale: float) -> Array:
    return np.random.default_rng(seed).normal(scale=scale, size=(count, size))


def distribution(scores: torch.Tensor) -> Array:
    return np.asarray(scores.softmax(-1).numpy())


sizes = st.integers(2, 40)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.1, 1.0, 4.0])
factors = st.sampled_from([-1.0, 0.0, 0.3, 1.0, 2.5])


@given(sizes, seeds, scales, factors, st.lists(factors, min_size=1, max_size=3))
def test_proxy_is_its_formula(size: int, seed: int, scale: float, alpha: float, weights: list[float]) -> None:
    z = drawn(2 + len(weights), size, seed, scale)
    found = proxy.proxy(torch.from_numpy(z), weights, proxy.Parameters(alpha))
    np.testing.assert_allclose(distribution(found), proxied(z, weights, alpha), atol=1e-12)


@given(sizes, seeds, scales, factors)
def test_eft_is_its_formula_and_normalised(size: int, seed: int, scale: float, beta: float) -> None:
    z = drawn(3, size, seed, scale)
    found = eft.eft(torch.from_numpy(z), [1.0], eft.Parameters(beta))
    np.testing.assert_allclose(found.exp().numpy(), emulated(z, [], beta), atol=1e-12)


@given(sizes, seeds, scales, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0, 2.0]), scales)
def test_contrast_is_its_formula(
    size: int, seed: int, scale: float, alpha: float, beta: float, temperature: float
) -> None:
    z = drawn(2, size, seed, scale)
    found = contrast.contrast(torch.from_numpy(z), [1.0], contrast.Parameters(alpha, beta, temperature))
    np.testing.assert_allclose(distribution(found), contrasted(z, [], alpha, beta, temperature), atol=1e-9)


@given(sizes, seeds, scales, st.sampled_from(["logits", "probs", "logprobs"]), st.integers(1, 4))
def test_ensemble_is_its_formula(size: int, seed: int, scale: float, space: str, count: int) -> None:
    z = drawn(count, size, seed, scale)
    weights = [0.5 + number for number in range(count)]
    found = ensemble.ensemble(torch.from_numpy(z), weights, ensemble.Parameters(space))
    np.testing.assert_allclose(distribution(found), averaged(z, weights, space), atol=1e-12)


@given(sizes, seeds, scales)
def test_fusion_of_one_expert_matches_its_distance_best_of_the_whole_grid(size: int, seed: int, scale: float) -> None:
    z = drawn(3, size, seed, scale)
    tried = [misses(z, [number / 10], both=False) for number in range(21)]
    [alpha] = fusion.factors(torch.from_numpy(z), fusion.Parameters()).tolist()
    assert misses(z, [alpha], both=False) <= min(tried) + 1e-12
    assert min(abs(alpha - number / 10) for number in range(21)) < 1e-12
    found = fusion.fusion(torch.from_numpy(z), [1.0], fusion.Parameters())
    np.testing.assert_allclose(distribution(found), fused(z, [1.0]), atol=1e-12)


@given(sizes, seeds, scales, st.integers(2, 3))
def test_no_other_factor_of_one_of_several_experts_would_fuse_better(
    size: int, seed: int, scale: float, count: int
) -> None:
    z = drawn(2 + count, size, seed, scale)
    alphas = fusion.factors(torch.from_numpy(z), fusion.Parameters()).tolist()
    here = misses(z, alphas, both=True)
    for number in range(count):
        for other in range(21):
            tried = [*alphas[:number], other / 10, *alphas[number + 1 :]]
            assert here <= misses(z, tried, both=True) + 1e-9
    found = fusion.fusion(torch.from_numpy(z), [1.0] * count, fusion.Parameters())
    np.testing.assert_allclose(distribution(found), proxied(z, alphas, 1.0), atol=1e-12)


def test_a_hand_worked_step() -> None:
    """Odds of the large model 1:1, of base 1:1, of the expert 4:1: at α = 1 the proxy's are 4:1, at α = 1/2 2:1."""
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 1.0]]).log().nan_to_num(neginf=0.0)
    for alpha, odds in ((1.0, 4.0), (0.5, 2.0)):
        p = proxy.proxy(z, [1.0], proxy.Parameters(alpha)).softmax(-1)
        assert float(p[0] / p[1]) == pytest.approx(odds)
    # the small model moved by its own KL, and from the same place: so does the large one
    assert fusion.factors(z, fusion.Parameters()).tolist() == pytest.approx([1.0])
    # 0.25 ≥ 0.1·0.75 is plausible, and what both find as likely counts nothing
    strong = torch.tensor([[0.75, 0.245, 0.005], [0.75, 0.05, 0.2]]).log()
    scores = contrast.contrast(strong, [1.0], contrast.Parameters())
    assert scores.tolist() == pytest.approx([0.0, np.log(4.9), -np.inf], abs=1e-6)


def test_every_operator_has_its_formula_here() -> None:
    assert set(operators()) == set(FORMULAS)
