"""Methods that merge directions: what their papers prove of them, and factors against whole matrices."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adapterhub.merging.methods import methods
from adapterhub.merging.ops.lowrank import Factors
from adapterhub.merging.registry import MergeSite, MethodSpec

ON_FACTORS = [name for name, spec in methods().items() if spec.on_factors is not None]


def factors(count: int, n: int = 20, m: int = 16, r: int = 3) -> list[Factors]:
    generator = torch.Generator().manual_seed(3)
    made = [
        [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((n, r), (r, m))] for _ in range(count)
    ]
    return [Factors(*one) for one in made]


def dense(given: Sequence[Factors]) -> list[torch.Tensor]:
    return [one.left @ one.right for one in given]


def on_factors(spec: MethodSpec, given: Sequence[Factors], **told: Any) -> torch.Tensor:
    site = MergeSite("w", dense(given)[0] * 0, tuple(f"sha256:{number}" for number in range(len(given))))
    left, right = spec.merge_factors(given, [1.0] * len(given), spec.parameters(**told), site)
    return left.double() @ right.double()


def on_matrices(spec: MethodSpec, given: Sequence[torch.Tensor], **told: Any) -> torch.Tensor:
    site = MergeSite("w", given[0] * 0, tuple(f"sha256:{number}" for number in range(len(given))))
    return spec.merge(given, [1.0] * len(given), spec.parameters(**told), site)


@pytest.mark.parametrize("name", ON_FACTORS)
def test_factors_give_what_whole_matrices_give(name: str) -> None:
    given = factors(3)
    torch.testing.assert_close(on_factors(methods()[name], given), on_matrices(methods()[name], dense(given)))


@pytest.mark.parametrize("name", ON_FACTORS)
def test_it_does_not_matter_how_a_product_is_divided_into_factors(name: str) -> None:
    given = factors(3)
    turn = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    turned = [Factors(one.left @ turn, torch.linalg.solve(turn, one.right)) for one in given]
    torch.testing.assert_close(on_factors(methods()[name], turned), on_factors(methods()[name], given))


@pytest.mark.parametrize("name", ["knots", "core_space"])
def test_a_sum_in_shared_coordinates_is_the_sum(name: str) -> None:
    given = factors(3)
    torch.testing.assert_close(on_factors(methods()[name], given, inner="sum"), sum(dense(given)))


def test_orthogonal_patches_are_summed_by_tsv_m() -> None:
    basis = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    given = [Factors(basis[:, k : k + 2] * 3.0, basis[:, k : k + 2].T) for k in (0, 4, 8)]
    torch.testing.assert_close(on_factors(methods()["tsv_m"], given), sum(dense(given)))


def test_iso_c_makes_the_directions_of_the_sum_equal_and_keeps_the_sum_of_their_sizes() -> None:
    given = factors(2)
    before, after = (torch.linalg.svdvals(one) for one in (sum(dense(given)), on_factors(methods()["iso_c"], given)))
    assert int((after > 1e-9).sum()) == 6
    torch.testing.assert_close(after[:6], before.sum().expand(6) / 6)


def test_iso_cts_without_own_directions_is_iso_c() -> None:
    given = factors(3)
    torch.testing.assert_close(
        on_factors(methods()["iso_cts"], given, common=1.0), on_factors(methods()["iso_c"], given)
    )


def test_wudi_is_the_minimum_of_its_objective() -> None:
    given = dense(factors(3, r=16))
    found = on_matrices(methods()["wudi"], given).requires_grad_()
    loss = torch.stack([((found - one) @ one.T).square().sum() / one.square().sum() for one in given]).sum()
    (gradient,) = torch.autograd.grad(loss, found)
    assert float(gradient.abs().max()) < 1e-8 * float(loss.detach())


def test_wudi_of_low_rank_patches_interferes_with_none() -> None:
    given = dense(factors(3))
    found = on_matrices(methods()["wudi"], given)
    for one in given:
        torch.testing.assert_close(found @ one.T, one @ one.T)
