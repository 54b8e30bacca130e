"""Drawn numbers are torch's own, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.merging.torch_random import TorchGenerator


@given(
    seed=st.integers(0, 2**63 - 1),
    shapes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=3),
    bound=st.floats(1e-3, 10),
)
@settings(max_examples=50)
def test_uniform_numbers_have_torchs_bits(seed: int, shapes: list[tuple[int, int]], bound: float) -> None:
    ours, theirs = TorchGenerator(seed), torch.Generator("cpu").manual_seed(seed)
    for shape in shapes:
        expected = torch.empty(shape).uniform_(-bound, bound, generator=theirs)
        assert torch.equal(torch.tensor(ours.uniform(shape, -bound, bound).copy()), expected)


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5])
def test_a_million_numbers_have_torchs_bits(seed: int) -> None:
    theirs = torch.empty(1_000_000).uniform_(-0.37, 0.37, generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(torch.tensor(TorchGenerator(seed).uniform((1_000_000,), -0.37, 0.37)), theirs)
