import pytest
import torch

from adapterhub.merging.ops.subspaces import chance_overlap, left_directions, overlap
from tests.merging.build import random


@pytest.mark.parametrize("shape", [(40, 30), (300, 280), (300, 600)])
def test_directions_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = random(shape[0], 5, seed=1) @ random(5, shape[1], seed=2) + 0.01 * random(*shape, seed=3)
    found = left_directions(matrix, 5)
    u, _, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert overlap(found, u[:, :5].float()) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(found.T @ found, torch.eye(5), rtol=1e-4, atol=1e-4)
    assert torch.equal(found, left_directions(matrix, 5))


def test_no_more_directions_than_the_matrix_has() -> None:
    assert left_directions(random(3, 7), 9).shape == (3, 3)


def test_random_subspaces_overlap_as_chance_says() -> None:
    q = [torch.linalg.qr(random(200, 20, seed=seed))[0] for seed in range(2)]
    assert overlap(q[0], q[1]) == pytest.approx(chance_overlap(200, 20), abs=0.02)
