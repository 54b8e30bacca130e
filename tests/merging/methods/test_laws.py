"""Laws that every registered merge method keeps, as far as its spec claims them."""

import pytest
import torch

from adapterhub.merging.methods import methods
from adapterhub.merging.registry import MethodSpec

SHAPES = [(1,), (7,), (1, 9), (9, 1), (0,), (0, 4), (33, 17), (3, 2, 5), ()]


def random_deltas(count: int, shape: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.fixture(params=sorted(methods()))
def spec(request: pytest.FixtureRequest) -> MethodSpec:
    return methods()[request.param]


def claims(spec: MethodSpec, law: str) -> None:
    if law not in spec.laws:
        pytest.skip(f"{spec.name} does not claim {law}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_patch_with_weight_one_comes_back(spec: MethodSpec, shape: tuple[int, ...]) -> None:
    claims(spec, "identity")
    (delta,) = random_deltas(1, shape)
    assert torch.equal(spec.function([delta], [1.0], spec.parameters()), delta)


def test_the_order_of_patches_does_not_matter(spec: MethodSpec) -> None:
    claims(spec, "commutative")
    deltas, weights = random_deltas(3, (33, 17)), [0.5, -0.25, 1.5]
    merged = spec.function(deltas, weights, spec.parameters())
    turned = spec.function(deltas[::-1], weights[::-1], spec.parameters())
    torch.testing.assert_close(merged, turned, rtol=1e-6, atol=1e-6)


def test_a_zero_patch_changes_nothing(spec: MethodSpec) -> None:
    claims(spec, "neutral_zero")
    deltas = random_deltas(2, (8, 8))
    merged = spec.function(deltas, [0.5, 0.7], spec.parameters())
    with_zero = spec.function([*deltas, torch.zeros(8, 8)], [0.5, 0.7, 0.9], spec.parameters())
    torch.testing.assert_close(merged, with_zero, rtol=1e-6, atol=1e-6)


def test_a_patch_merged_with_itself_comes_back(spec: MethodSpec) -> None:
    claims(spec, "idempotent")
    (delta,) = random_deltas(1, (8, 8))
    torch.testing.assert_close(spec.function([delta, delta], [0.5, 0.5], spec.parameters()), delta)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_stay_and_inputs_are_not_modified(
    spec: MethodSpec, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    deltas = [delta.to(dtype) for delta in random_deltas(3, shape)]
    before = [delta.clone() for delta in deltas]
    merged = spec.function(deltas, [0.3, 0.3, 0.4], spec.parameters())
    assert merged.shape == torch.Size(shape)
    assert merged.dtype == dtype
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, before, strict=True))


def test_the_same_call_gives_the_same_bytes_on_one_and_two_threads(spec: MethodSpec) -> None:
    deltas, weights = random_deltas(3, (256, 300)), [0.4, 0.4, 0.7]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = spec.function(deltas, weights, spec.parameters())
        torch.set_num_threads(2)
        two = spec.function(deltas, weights, spec.parameters())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_a_linear_method_is_the_sum_that_its_coefficients_say(spec: MethodSpec) -> None:
    if spec.coefficients is None:
        return
    deltas, weights = random_deltas(3, (16, 5)), [0.4, 0.4, 0.7]
    coefficients = spec.coefficients(weights, spec.parameters())
    expected = sum((c * d.double() for c, d in zip(coefficients, deltas, strict=True)), torch.zeros(16, 5).double())
    merged = spec.function(deltas, weights, spec.parameters())
    torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6)


def test_every_method_says_where_it_comes_from(spec: MethodSpec) -> None:
    assert spec.source
    assert "Source:" in (spec.function.__doc__ or "")
    assert spec.name == spec.function.__module__.rpartition(".")[2]
