from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from adapterhub.hub.serving.protocol import Sampling
from adapterhub.hub.serving.sampling import Sampler, likeliest, nucleus, repeated_less

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


def test_top_k_and_repetition_are_those_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        scores = torch.randn(50, generator=generator) * 3
        prompt = torch.randint(0, 50, (1, 12), generator=generator)
        said = torch.zeros(50, dtype=torch.bool)
        said[prompt[0]] = True
        theirs: Any = transformers.RepetitionPenaltyLogitsProcessor(1.3)
        assert torch.equal(repeated_less(scores, said, 1.3), theirs(prompt, scores[None])[0])
        kept: Any = transformers.TopKLogitsWarper(seed + 1)
        assert torch.equal(likeliest(scores, seed + 1), kept(prompt, scores[None])[0])
    assert torch.equal(likeliest(scores, 99), scores)


def test_top_k_draws_from_so_many_alone() -> None:
    assert set(draws(Sampling(top_k=2))) == {0, 1}
    assert set(draws(Sampling(top_k=1, temperature=2.0))) == {0}


def test_what_the_prompt_said_is_repeated_less() -> None:
    asked = Sampling(temperature=0, repetition_penalty=4.0)
    assert sampler(asked).choose(LOGITS) == 0
    assert Sampler(asked, 0, torch.device("cpu"), 4, prompt=[0]).choose(LOGITS) == 1
