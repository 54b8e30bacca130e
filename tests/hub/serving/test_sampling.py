import pytest
import torch
from torch import Tensor

from adapterhub.hub.serving.protocol import Sampling
from adapterhub.hub.serving.sampling import Sampler, nucleus

LOGITS = torch.tensor([0.5, 0.4, 0.3, -20.0]).log().nan_to_num(-30.0)


def sampler(sampling: Sampling, seed: int = 0) -> Sampler:
    return Sampler(sampling, seed, torch.device("cpu"), 4)


def draws(sampling: Sampling, count: int = 200, seed: int = 0) -> list[int]:
    made = sampler(sampling, seed)
    return [made.choose(LOGITS) for _ in range(count)]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(1.0, [0.5, 0.3, 0.2]), (0.8, [0.5, 0.3, 0.0]), (0.79, [0.5, 0.3, 0.0]), (0.5, [0.5, 0, 0]), (0.0, [0.5, 0, 0])],
)
def test_the_nucleus_is_the_fewest_that_reach_top_p(top_p: float, expected: list[float]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    before: Tensor = probabilities.clone()
    assert torch.equal(nucleus(probabilities, top_p), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(probabilities, before)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(draws(Sampling(temperature=0))) == {0}


def test_equal_seeds_draw_equal_tokens_and_others_do_not() -> None:
    assert draws(Sampling(), seed=1) == draws(Sampling(), seed=1) != draws(Sampling(), seed=2)


def test_frequency_penalty_makes_even_the_greedy_take_turns() -> None:
    assert set(draws(Sampling(temperature=0, frequency_penalty=1.0), count=6)) == {0, 1, 2}


def test_a_bias_forces_and_forbids_a_token() -> None:
    assert set(draws(Sampling(logit_bias={3: 100.0}))) == {3}
    assert 0 not in draws(Sampling(logit_bias={0: -100.0}))
