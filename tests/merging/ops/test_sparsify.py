import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.ops.sparsify import keep_largest, kept_count


@given(st.lists(st.integers(-3, 3), max_size=40), st.floats(0.01, 1.0))
def test_the_kept_entries_are_those_of_a_stable_sort(values: list[int], density: float) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))[: kept_count(len(values), density)]
    expected = [float(value) if i in order else 0.0 for i, value in enumerate(values)]
    assert keep_largest(delta, density).tolist() == expected


def test_equal_magnitudes_keep_the_first_ones() -> None:
    assert keep_largest(torch.tensor([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [1.0, -1.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_entry_survives_any_density(shape: tuple[int, ...]) -> None:
    assert torch.equal(keep_largest(torch.ones(shape), 1e-6), torch.ones(shape))


def test_an_empty_tensor_stays_empty() -> None:
    assert keep_largest(torch.zeros(0, 4), 0.3).shape == (0, 4)


def test_a_bad_number_stays_to_be_found() -> None:
    kept = keep_largest(torch.tensor([1.0, float("nan"), 3.0, 0.5, 0.1]), 0.4)
    assert kept.isnan().tolist() == [False, True, False, False, False]
    assert keep_largest(torch.tensor([1.0, float("inf"), 3.0, 0.5, 0.1]), 0.2).isinf().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_threshold_is_exact_in_its_dtype(dtype: torch.dtype) -> None:
    delta = torch.tensor([0.1, -0.1, 0.3, 1 / 3, 0.0], dtype=dtype)
    assert keep_largest(delta, 0.6).tolist() == [delta[0].item(), 0.0, *delta[2:4].tolist(), 0.0]
