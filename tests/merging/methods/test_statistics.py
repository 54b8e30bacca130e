"""RegMean and Fisher on tensors: what their papers prove of them."""

import torch

from adapterhub.merging.methods import fisher, regmean
from adapterhub.merging.ops.grams import symmetric, triangle
from adapterhub.merging.registry import Measured, MergeSite


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DELTAS = [random(7, 5, seed=seed) for seed in range(3)]
GRAMS = [(one := random(20, 5, seed=seed)).T @ one / 20 for seed in range(10, 13)]
BASE = random(7, 5, seed=99)


def site(grams: list[torch.Tensor], *, is_transposed: bool = False) -> MergeSite:
    measured = tuple(
        Measured(gram=one, count=3 + number, is_transposed=is_transposed) for number, one in enumerate(grams)
    )
    return MergeSite("w", BASE, ("a", "b", "c"), measured=measured)


def test_equal_inputs_give_the_mean() -> None:
    found = regmean.regmean(DELTAS, [1.0, 2.0, 1.0], regmean.Parameters(), site([torch.eye(5).double()] * 3))
    torch.testing.assert_close(found, (DELTAS[0] + 2 * DELTAS[1] + DELTAS[2]) / 4)


def test_on_deltas_is_on_weights() -> None:
    told = regmean.Parameters(alpha=0.7)
    found = regmean.regmean(DELTAS, [1.0] * 3, told, site(GRAMS))
    whole = regmean.regmean([BASE + one for one in DELTAS], [1.0] * 3, told, site(GRAMS))
    torch.testing.assert_close(BASE + found, whole)


def test_it_is_the_minimum_of_what_the_paper_minimises() -> None:
    found = regmean.regmean(DELTAS, [1.0] * 3, regmean.Parameters(alpha=1.0), site(GRAMS)).requires_grad_()
    terms = [torch.trace((found - one) @ gram @ (found - one).T) for one, gram in zip(DELTAS, GRAMS, strict=True)]
    (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), found)
    assert float(gradient.abs().max()) < 1e-10


def test_a_matrix_stored_turned_gives_the_result_turned() -> None:
    found = regmean.regmean(DELTAS, [1.0] * 3, regmean.Parameters(), site(GRAMS))
    turned = regmean.regmean(
        [one.T for one in DELTAS], [1.0] * 3, regmean.Parameters(), site(GRAMS, is_transposed=True)
    )
    torch.testing.assert_close(turned, found.T)


def test_counts_make_of_means_the_paper_s_sums() -> None:
    found = regmean.regmean(DELTAS, [1.0] * 3, regmean.Parameters(counts=True), site(GRAMS))
    same = regmean.regmean(DELTAS, [3.0, 4.0, 5.0], regmean.Parameters(), site(GRAMS))
    torch.testing.assert_close(found, same)


def test_what_no_data_reaches_stays_the_base_s() -> None:
    """Fewer samples than dimensions: the paper's inverse does not exist."""
    x = random(2, 5, seed=3)
    found = regmean.regmean(DELTAS, [1.0] * 3, regmean.Parameters(alpha=1.0), site([x.T @ x] * 3))
    unseen = torch.linalg.svd(x, full_matrices=True).Vh[2:]
    torch.testing.assert_close(found @ unseen.T, torch.zeros(7, 3, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(found @ x.T, (DELTAS[0] + DELTAS[1] + DELTAS[2]) @ x.T / 3)


def test_fisher_of_equal_care_is_the_mean_and_of_none_the_base() -> None:
    def at(*matrices: torch.Tensor) -> MergeSite:
        return MergeSite("w", BASE, ("a", "b"), measured=tuple(Measured(fisher=one) for one in matrices))

    ones = torch.ones(7, 5, dtype=torch.float64)
    told = fisher.Parameters(floor=0.0, normalize=False)
    torch.testing.assert_close(fisher.fisher(DELTAS[:2], [1.0, 1.0], told, at(ones, ones)), (DELTAS[0] + DELTAS[1]) / 2)
    torch.testing.assert_close(fisher.fisher(DELTAS[:2], [1.0, 1.0], told, at(ones, 0 * ones)), DELTAS[0])
    assert not fisher.fisher(DELTAS[:2], [1.0, 1.0], told, at(0 * ones, 0 * ones)).any()


def test_triangles_are_whole_matrices_again() -> None:
    for size in (0, 1, 2, 7):
        square = random(size, size, seed=size)
        torch.testing.assert_close(symmetric(triangle(square + square.T)), square + square.T)
