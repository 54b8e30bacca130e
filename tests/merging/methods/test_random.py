"""Methods that draw: their masks belong to seed, patch and tensor, and have the statistics that they promise."""

import math

import pytest
import torch

from adapterhub.merging.methods import methods
from adapterhub.merging.ops.draws import chosen, keep_likely, words
from adapterhub.merging.registry import MergeSite

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
DELTA = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))


def merged(method: str, *, digest: str = "a", name: str = "w", **told: object) -> torch.Tensor:
    spec = methods()[method]
    site = MergeSite(name, torch.zeros_like(DELTA), (digest,))
    return spec.merge([DELTA], [1.0], spec.parameters(**told), site)


@pytest.mark.parametrize("method", RANDOM)
def test_another_seed_patch_or_tensor_draws_another_mask_and_the_same_ones_the_same(method: str) -> None:
    first = merged(method)
    assert torch.equal(merged(method), first)
    others = [merged(method, seed=1), merged(method, digest="b"), merged(method, name="v")]
    for other in others:
        agreeing = ((other != 0) == (first != 0)).double().mean()
        assert abs(float(agreeing) - 0.5) < 0.02


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_a_share_of_density_is_kept_and_what_is_left_stands_for_all(density: float) -> None:
    kept = merged("dare_linear", density=density)
    count = DELTA.numel()
    sigma = math.sqrt(density * (1 - density) / count)
    assert abs(float((kept != 0).double().mean()) - density) < 4 * sigma
    slope = float((kept.double() * DELTA.double()).sum() / DELTA.double().square().sum())
    assert abs(slope - 1) < 4 * math.sqrt(3 * (1 / density - 1) / count)


def test_della_keeps_large_entries_likelier_and_divides_each_by_its_own_probability() -> None:
    kept = keep_likely(DELTA, 0.5, 0.2, "inverse", 0, "a", "w")
    order = DELTA.abs().argsort(1)
    is_kept = (kept != 0).double().gather(1, order)
    low, high = float(is_kept[:, :30].mean()), float(is_kept[:, -30:].mean())
    assert abs(low - 0.32) < 0.03
    assert abs(high - 0.68) < 0.03
    factors = (kept / DELTA)[kept != 0]
    assert float(factors.min()) == pytest.approx(1 / 0.7, rel=1e-5)
    assert float(factors.max()) == pytest.approx(1 / 0.3, rel=1e-5)


def test_density_one_draws_nothing() -> None:
    for method in RANDOM:
        assert torch.equal(merged(method, density=1.0), DELTA)


def test_words_are_the_same_wherever_a_tensor_ends() -> None:
    assert torch.equal(words(3, "a", "w", 7), words(3, "a", "w", 1000)[:7])
    assert bool(chosen(1.0, 0, "a", "w", DELTA).all())
    assert not bool(chosen(0.0, 0, "a", "w", DELTA).any())


def test_the_words_stay_what_they_are() -> None:
    """A change of the generator would change every stored recipe's result."""
    assert words(0, "sha256:0", "w", 4).tolist() == [3988617051, 1583926397, 2796049512, 1854851190]
