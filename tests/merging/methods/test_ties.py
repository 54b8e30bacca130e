import numpy as np
import pytest
import torch

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods.ties import Parameters, ties
from adapterhub.merging.registry import make_parameters


def ties_in_float64(deltas: list[torch.Tensor], weights: list[float], density: float, scale: float) -> np.ndarray:
    """The paper's three steps written out entry by entry, trimmed with a stable sort."""
    trimmed = []
    for delta in deltas:
        flat = delta.double().numpy().ravel()
        kept = np.zeros_like(flat)
        largest = np.argsort(-np.abs(flat), kind="stable")[: max(1, int(density * flat.size))]
        kept[largest] = flat[largest]
        trimmed.append(kept)
    result = np.zeros_like(trimmed[0])
    for entry in range(result.size):
        pulls = [weight * delta[entry] for weight, delta in zip(weights, trimmed, strict=True)]
        sign = 1.0 if sum(pulls) >= 0 else -1.0
        agreeing = [(pull, weight) for pull, weight in zip(pulls, weights, strict=True) if pull * sign > 0]
        if agreeing:
            result[entry] = sum(p for p, _ in agreeing) / sum(w for _, w in agreeing)
    return scale * result.reshape(deltas[0].shape)


def test_ties_by_hand_on_two_by_two() -> None:
    # density 0.5 keeps two of four: A keeps 4 and -3, B keeps 2 and 5
    a = torch.tensor([[4.0, 1.0], [-3.0, 0.5]])
    b = torch.tensor([[2.0, -1.0], [5.0, 0.5]])
    # entry (0,0): both positive, (4+2)/2 = 3; entry (1,0): -3+5 > 0 elects +, only 5 agrees; the others were trimmed
    assert ties([a, b], [1.0, 1.0], Parameters(density=0.5)).tolist() == [[3.0, 0.0], [5.0, 0.0]]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.3, 0.5, 0.2], [2.0, 0.1, 0.7]])
def test_ties_equals_its_formula_in_float64(density: float, weights: list[float]) -> None:
    generator = torch.Generator().manual_seed(7)
    deltas = [torch.randn((23, 19), generator=generator) for _ in weights]
    merged = ties(deltas, weights, Parameters(density=density, scale=0.8))
    expected = ties_in_float64(deltas, weights, density, 0.8)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=3e-6, atol=1e-6)


def test_ties_keeps_the_sign_with_the_greater_total() -> None:
    deltas = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-3.0])]
    assert ties(deltas, [1.0, 1.0, 1.0], Parameters()).tolist() == [-3.0]


def test_opposite_deltas_keep_the_positive_side() -> None:
    delta = torch.tensor([2.0, -2.0])
    assert ties([delta, -delta], [1.0, 1.0], Parameters()).tolist() == [2.0, 2.0]


def test_a_sum_of_nothing_can_take_the_sign_of_most_of_the_tensor() -> None:
    a, b = torch.tensor([2.0, -1.0, -1.0, 3.0]), torch.tensor([-2.0, -1.0, -2.0, 1.0])
    assert ties([a, b], [1.0, 1.0], Parameters()).tolist() == [2.0, -1.0, -1.5, 2.0]
    assert ties([a, b], [1.0, 1.0], Parameters(tie="majority")).tolist() == [-2.0, -1.0, -1.5, 2.0]
    assert ties([-a, -b], [1.0, 1.0], Parameters(tie="majority")).tolist() == [2.0, 1.0, 1.5, -2.0]


def test_ties_counts_instead_of_weighing_when_asked() -> None:
    deltas = [torch.tensor([4.0]), torch.tensor([2.0])]
    assert ties(deltas, [0.5, 0.5], Parameters(normalize="count")).tolist() == [1.5]
    assert ties(deltas, [0.5, 0.5], Parameters(normalize="none")).tolist() == [3.0]


def test_signs_can_be_elected_without_weights() -> None:
    deltas, weights = [torch.tensor([3.0]), torch.tensor([-2.0])], [0.1, 1.0]
    assert ties(deltas, weights, Parameters(elect="weighted")).tolist() == [-2.0]
    assert ties(deltas, weights, Parameters(elect="unweighted")).tolist() == [pytest.approx(3.0)]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, True])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(InvalidParameter, match="density"):
        make_parameters(Parameters, {"density": density}, "ties")


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="weights or count or none"):
        make_parameters(Parameters, {"normalize": "sum"}, "ties")
