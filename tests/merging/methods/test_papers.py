"""Methods known from their papers alone, against the papers' formulas written out in numpy and float64."""

from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import emr, methods, pcb, robustmerge, tall
from adapterhub.merging.ops.lowrank import Trained
from adapterhub.merging.ops.task_masks import emr_scale, unify

Array = np.ndarray[Any, np.dtype[Any]]


def deltas(count: int = 3, shape: tuple[int, ...] = (12, 9)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def near(found: torch.Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


# ---- EMR and TALL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [1, 2, 3])
def test_emr_is_the_paper_s_elect_mask_and_rescale(task: int) -> None:
    given = deltas()
    found = emr.emr(given, [1.0] * 3, emr.Parameters(task=task))
    D = np.stack([one.numpy() for one in given])
    gamma = np.sign(D.sum(0))
    u = gamma * np.where(D * gamma > 0, np.abs(D), 0).max(0)
    m = D[task - 1] * u > 0
    near(found, np.abs(D[task - 1]).sum() / np.abs(m * u).sum() * m * u)


def test_emr_by_hand_on_two_by_two() -> None:
    a, b = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0], [-1.0, 4.0]])
    assert unify([a, b]).tolist() == [[2.0, -2.0], [3.0, 4.0]]
    of_b = emr.emr([a, b], [1.0, 1.0], emr.Parameters(task=2))
    torch.testing.assert_close(of_b, torch.tensor([[2.0, 0.0], [0.0, 4.0]]) * 8 / 6)


def test_emr_gives_a_task_its_own_size_back_and_nothing_where_it_never_agrees() -> None:
    given = deltas()
    found = emr.emr(given, [1.0] * 3, emr.Parameters(task=2))
    torch.testing.assert_close(found.abs().sum(), given[1].abs().sum())
    lost = emr.emr([torch.ones(3), -torch.ones(3) / 2], [1.0, 1.0], emr.Parameters(task=2))
    assert lost.tolist() == [0, 0, 0]
    assert emr_scale(0.0, 0.0) == 0.0


@pytest.mark.parametrize("factor", [0.0, 0.4, 2.0])
def test_tall_is_the_sum_where_the_task_outweighs_the_others(factor: float) -> None:
    given, weights = deltas(), [0.5, 0.8, -0.2]
    found = tall.tall(given, weights, tall.Parameters(task=2, tall=factor))
    D = np.stack([one.numpy() for one in given])
    tau = np.tensordot(weights, D, 1)
    near(found, np.where(np.abs(D[1]) > factor * np.abs(tau - D[1]), tau, 0))


@pytest.mark.parametrize("method", ["emr", "tall"])
def test_a_task_that_is_not_there_is_refused(method: str) -> None:
    spec = methods()[method]
    with pytest.raises(InvalidParameter, match=f"{method}: has 2 inputs after its base; it takes 3 or more"):
        spec.check_inputs([1.0, 1.0], spec.parameters(task=3))


# ---- PCB -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "clip"), [(0.1, 0.0001), (0.5, 0.02), (1.0, 0.0)])
def test_pcb_is_the_paper_s_competition(density: float, clip: float) -> None:
    given, weights = deltas(), [0.9, 1.2, 0.7]
    found = pcb.pcb(given, weights, pcb.Parameters(density=density, clip=clip, scale=0.8))
    D = np.stack([one.numpy().reshape(-1) for one in given])
    count = D.shape[1]

    def clamped(rows: Array, low: float, high: float) -> Array:
        order = np.sort(rows, 1)
        return np.clip(rows, order[:, [int(count * low)]], order[:, [int(count * (1 - high) - 1)]])

    def scaled(rows: Array) -> Array:
        low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
        return (rows - low) / (high - low)  # type: ignore[no-any-return]

    size = clamped(np.abs(D), clip, clip)
    P = np.exp(3 * scaled(size) ** 2) * np.tanh(D * D.sum(0))
    beta = scaled(clamped(P, 1 - density, 0))
    expected = 0.8 * (np.array(weights)[:, None] * np.sign(D) * size * beta).sum(0) / np.maximum(beta.sum(0), 1e-12)
    near(found, expected.reshape(12, 9))


def test_pcb_keeps_a_single_number() -> None:
    """The published code divides by a range of 0 there."""
    assert pcb.pcb([torch.tensor([2.0])], [1.0], pcb.Parameters()).tolist() == [2.0]


# ---- RobustMerge -----------------------------------------------------------------------------------------------------


def loras() -> list[Trained]:
    generator = torch.Generator().manual_seed(2)
    made = [
        [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((5, 11), (8, 5))] for _ in range(3)
    ]
    return [Trained(A, B, 0.5) for A, B in made]


def test_robustmerge_is_the_published_pruning_and_scaling() -> None:
    given = loras()
    found = robustmerge.robustmerge(given, [1.0] * 3, robustmerge.Parameters())

    def pruned(factor: Array) -> Array:
        least = np.sort(np.abs(factor), None)[-max(1, int(0.2 * factor.size))]
        return np.where(np.abs(factor) >= least, factor, 0)

    A, B, S = np.zeros((5, 11)), np.zeros((8, 5)), np.zeros(5)
    for one in given:
        kept = pruned(one.A.numpy())
        lost = np.abs(kept).sum(1)
        ratio = np.where(lost > 0, np.abs(one.A.numpy()).sum(1) / np.where(lost > 0, lost, 1), 1)
        s = np.maximum(ratio, np.sort(ratio)[int(5 * 0.8)])
        A, B, S = A + 0.5 * 2 * kept, B + 2 * s * pruned(one.B.numpy()), S + s
    near(found.left @ found.right, B / S @ A)


def test_robustmerge_moves_with_the_division_into_factors() -> None:
    """Why it takes LoRAs as they were trained and nothing else."""
    given = loras()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = [Trained(turn.T @ one.A, one.B @ turn, one.scaling) for one in given]
    first, second = (robustmerge.robustmerge(one, [1.0] * 3, robustmerge.Parameters()) for one in (given, turned))
    assert float((first.left @ first.right - second.left @ second.right).norm()) > 0.1
