"""Laws that every registered merge method keeps, as far as its spec claims them."""

import pytest
import torch

from adapterhub.merging.methods import methods
from adapterhub.merging.registry import MergeSite, MethodSpec

SHAPES = [(1,), (7,), (1, 9), (9, 1), (0,), (0, 4), (33, 17), (3, 2, 5), ()]


def random_deltas(count: int, shape: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def merge(
    spec: MethodSpec,
    deltas: list[torch.Tensor],
    weights: list[float] | None = None,
    *,
    digests: list[str] | None = None,
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the method makes of as many of the deltas as it takes, by its own defaults."""
    count = len(deltas) if spec.inputs[1] is None else min(len(deltas), spec.inputs[1])
    weights = weights if weights is not None and spec.takes_weights else [1.0] * len(deltas)
    names = digests or [f"sha256:{number}" for number in range(len(deltas))]
    base = random_deltas(1, tuple(deltas[0].shape), seed=9)[0].to(deltas[0].dtype) if base is None else base
    site = MergeSite("model.layers.0.w", base, tuple(names[:count]), 0.0)
    return spec.merge(deltas[:count], weights[:count], spec.parameters(), site)


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
    torch.testing.assert_close(merge(spec, [delta]), delta, rtol=1e-6, atol=1e-6)


def test_the_order_of_patches_does_not_matter(spec: MethodSpec) -> None:
    claims(spec, "commutative")
    deltas, weights = random_deltas(3, (33, 17)), [0.5, -0.25, 1.5]
    if spec.inputs[1] is not None:
        deltas, weights = deltas[: spec.inputs[1]], weights[: spec.inputs[1]]
    names = [f"sha256:{number}" for number in range(len(deltas))]
    merged = merge(spec, deltas, weights, digests=names)
    turned = merge(spec, deltas[::-1], weights[::-1], digests=names[::-1])
    torch.testing.assert_close(merged, turned, rtol=1e-6, atol=1e-6)


def test_a_zero_patch_changes_nothing(spec: MethodSpec) -> None:
    claims(spec, "neutral_zero")
    deltas = random_deltas(2, (8, 8))
    merged = merge(spec, deltas, [0.5, 0.7])
    with_zero = merge(spec, [*deltas, torch.zeros(8, 8)], [0.5, 0.7, 0.9])
    torch.testing.assert_close(merged, with_zero, rtol=1e-6, atol=1e-6)


def test_a_patch_merged_with_itself_comes_back(spec: MethodSpec) -> None:
    claims(spec, "idempotent")
    (delta,) = random_deltas(1, (8, 8))
    torch.testing.assert_close(merge(spec, [delta, delta], [0.5, 0.5]), delta)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_stay_and_inputs_are_not_modified(
    spec: MethodSpec, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    deltas = [delta.to(dtype) for delta in random_deltas(3, shape)]
    before = [delta.clone() for delta in deltas]
    merged = merge(spec, deltas, [0.3, 0.3, 0.4])
    assert merged.shape == torch.Size(shape)
    assert merged.dtype == dtype
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, before, strict=True))


def test_the_same_call_gives_the_same_bytes_on_one_and_two_threads(spec: MethodSpec) -> None:
    deltas, weights = random_deltas(3, (256, 300)), [0.4, 0.4, 0.7]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = merge(spec, deltas, weights)
        torch.set_num_threads(2)
        two = merge(spec, deltas, weights)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_a_linear_method_is_the_sum_that_its_coefficients_say(spec: MethodSpec) -> None:
    if spec.coefficients is None:
        return
    deltas, weights = random_deltas(3, (16, 5)), [0.4, 0.4, 0.7]
    coefficients = spec.coefficients(weights, spec.parameters())
    expected = sum((c * d.double() for c, d in zip(coefficients, deltas, strict=True)), torch.zeros(16, 5).double())
    merged = merge(spec, deltas, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6)


def test_every_method_says_where_it_comes_from(spec: MethodSpec) -> None:
    assert spec.source
    assert "Source:" in (spec.function.__doc__ or "")
    assert spec.name == spec.function.__module__.rpartition(".")[2]
