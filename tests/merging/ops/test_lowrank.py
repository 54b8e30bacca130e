import pytest
import torch

from adapterhub.merging.ops.lowrank import Factors, bases, concatenate, inner_product, reduce_rank, singular_values


def random_factors(n: int, m: int, r: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn((n, r), generator=generator), torch.randn((r, m), generator=generator))


def dense(factors: Factors) -> torch.Tensor:
    return factors.left.double() @ factors.right.double()


def test_concatenated_factors_are_the_sum() -> None:
    parts = [random_factors(9, 7, r, seed=r) for r in (1, 2, 3)]
    total = concatenate(parts)
    assert total.left.shape == (9, 6)
    torch.testing.assert_close(dense(total), sum(map(dense, parts), torch.zeros(9, 7).double()))


def test_inner_products_need_no_dense_matrix() -> None:
    a, b = random_factors(9, 7, 2, seed=1), random_factors(9, 7, 3, seed=2)
    assert inner_product(a, b) == pytest.approx(float((dense(a) * dense(b)).sum()))


@pytest.mark.parametrize(("n", "m", "r"), [(9, 7, 3), (7, 9, 3), (3, 4, 6), (1, 5, 2), (5, 1, 2)])
def test_singular_values_are_those_of_the_product(n: int, m: int, r: int) -> None:
    factors = random_factors(n, m, r, seed=3)
    expected = torch.linalg.svdvals(dense(factors))[: min(n, m, r)]
    torch.testing.assert_close(singular_values(factors), expected, rtol=1e-6, atol=1e-6)


def test_bases_drop_directions_that_the_product_does_not_have() -> None:
    one = random_factors(9, 7, 1, seed=4)
    u, s, v = bases(concatenate([one, one]))
    assert s.shape == (1,)
    torch.testing.assert_close(u @ torch.diag(s) @ v.T, 2 * dense(one))


def test_a_zero_product_has_no_directions() -> None:
    assert bases(Factors(torch.zeros(4, 2), torch.zeros(2, 3)))[1].shape == (0,)


def test_a_rank_not_below_the_products_own_loses_nothing() -> None:
    factors = concatenate([random_factors(9, 7, 2, seed=5), random_factors(9, 7, 2, seed=6)])
    reduced, lost = reduce_rank(factors, 4)
    assert reduced.left.shape == (9, 4)
    assert lost == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(dense(reduced), dense(factors), rtol=1e-5, atol=1e-5)


def test_a_reduced_rank_loses_what_a_truncated_svd_loses() -> None:
    factors = random_factors(12, 10, 5, seed=7)
    reduced, lost = reduce_rank(factors, 2)
    s = torch.linalg.svdvals(dense(factors))
    assert lost == pytest.approx(float(s[2:].square().sum() / s.square().sum()))
    assert float((dense(reduced) - dense(factors)).norm()) == pytest.approx(float(s[2:].norm()), rel=1e-5)
