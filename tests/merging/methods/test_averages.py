import pytest
import torch

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import linear, task_arithmetic


def test_linear_by_hand_on_two_by_two() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    b = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert linear.linear([a, b], [3.0, 1.0], linear.Parameters()).tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert linear.linear([a, b], [0.5, 0.5], linear.Parameters(normalize=False)).tolist() == [[3.0, 4.0], [5.0, 6.0]]


def test_task_arithmetic_by_hand_on_two_by_two() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    b = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    parameters = task_arithmetic.Parameters(scale=2.0)
    assert task_arithmetic.task_arithmetic([a, b], [1.0, -0.5], parameters).tolist() == [[0.0, 4.0], [6.0, 6.0]]


def test_a_task_added_and_taken_away_leaves_nothing() -> None:
    delta = torch.randn((5, 5), generator=torch.Generator().manual_seed(1))
    left = task_arithmetic.task_arithmetic([delta, delta], [0.7, -0.7], task_arithmetic.Parameters())
    torch.testing.assert_close(left, torch.zeros(5, 5), rtol=0, atol=1e-6)


def test_weights_that_cancel_cannot_be_normalised() -> None:
    delta = torch.ones(2)
    with pytest.raises(InvalidParameter, match="add up to 0"):
        linear.linear([delta, delta], [1.0, -1.0], linear.Parameters())
    with pytest.raises(InvalidParameter, match="add up to 0"):
        task_arithmetic.coefficients([1.0, -1.0], task_arithmetic.Parameters(normalize=True))
