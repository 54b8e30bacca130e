"""Compiled passes are torch's own, bit for bit."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.ops.passes import CompiledPasses, Passes, expect, passes

pytest.importorskip("numba", reason="there is no numba for this Python; torch's passes are used alone")
KERNELS = import_module("adapterhub.merging.ops.kernels")
TORCH, COMPILED = Passes(), CompiledPasses(KERNELS)


def halves(seed: int, numel: int, spread: int = 20) -> torch.Tensor:
    """bfloat16 of every size up to 2**spread and down to 2**-spread, some 0, all of them with random signs."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.randint(-spread, spread + 1, (numel,), generator=generator)
    values = torch.randn(numel, generator=generator) * 2.0**powers
    values[torch.rand(numel, generator=generator) < 0.05] = 0.0
    return values.bfloat16().reshape(-1, 1)


@given(st.integers(0, 2**31), st.integers(1, 70), st.floats(-3, 3, width=32))
def test_a_sum_of_differences_is_torchs(seed: int, numel: int, weight: float) -> None:
    base, *tuned = (halves(seed + i, numel) for i in range(3))
    results = []
    for one in (TORCH, COMPILED):
        before, tile = one.widened(base, torch.float32)
        assert torch.equal(before, base.float())
        one.add_differences(tile, [(weight, tuned[0]), (0.3, tuned[1])], base)
        exact = tile.clone()
        result, changed, lost = one.rounded(before, tile, torch.bfloat16)
        assert changed == pytest.approx(float((base.double() - exact.double()).square().sum()), rel=1e-4)
        assert lost == pytest.approx(float((result.double() - exact.double()).square().sum()), rel=1e-4, abs=1e-30)
        results.append((exact, result))
    assert torch.equal(results[0][0].view(torch.int32), results[1][0].view(torch.int32))
    assert torch.equal(results[0][1].view(torch.int16), results[1][1].view(torch.int16))


@given(st.integers(0, 2**31), st.integers(1, 70))
def test_a_base_and_a_difference_from_it_are_torchs(seed: int, numel: int) -> None:
    base, tuned = halves(seed, numel), halves(seed + 1, numel)
    expected, found = (
        torch.stack([one.wide(base, torch.float32), one.difference(tuned, base, torch.float32)])
        for one in (TORCH, COMPILED)
    )
    assert torch.equal(expected.view(torch.int32), found.view(torch.int32))


@given(st.integers(0, 2**31), st.integers(1, 9000))
def test_products_are_those_of_float64(seed: int, numel: int) -> None:
    first, second = halves(seed, numel), halves(seed + 1, numel)
    x, y = first.double().flatten(), second.double().flatten()
    expected = [float((a * b).sum()) for a, b in ((x, x), (x, y), (y, y))]
    for one in (TORCH, COMPILED):
        assert one.products(first, second) == pytest.approx(expected, rel=1e-12, abs=1e-12 * expected[0] * expected[2])


FACTOR = st.floats(-3, 3, width=32)


@given(st.integers(0, 2**31), st.integers(1, 9000), FACTOR | st.just(0.0), st.lists(FACTOR, min_size=1, max_size=4))
def test_one_pass_for_all_models_gives_the_same_bits(
    seed: int, numel: int, of_rows: float, weights: list[float]
) -> None:
    """More entries than a chunk has, and a last chunk that is short."""
    base, *tuned = (halves(seed + number, numel) for number in range(1 + len(weights)))
    weighted = list(zip(weights, tuned, strict=True))
    results = [one.merged(base, of_rows, weighted, torch.float32, torch.bfloat16) for one in (TORCH, COMPILED)]
    assert torch.equal(results[0][0].view(torch.int16), results[1][0].view(torch.int16))
    assert results[0][1:] == pytest.approx(results[1][1:], rel=1e-3, abs=1e-30)


def test_ties_go_to_the_even_neighbour_and_subnormals_stay() -> None:
    bits = torch.tensor(
        [0x3F808000, 0x3F818000, 0x3F80_8001, 0x0000_8000, 0x0001_8000, -0x8000_0000], dtype=torch.int32
    )
    tile = bits.view(torch.float32).reshape(-1, 1)
    found, *_ = COMPILED.rounded(torch.zeros_like(tile), tile, torch.bfloat16)
    assert found.view(torch.int16).flatten().tolist() == [0x3F80, 0x3F82, 0x3F81, 0, 2, -0x8000]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 3.4e38])
def test_sums_are_not_finite_where_an_entry_is_not(bad: float) -> None:
    tile = torch.tensor([[1.0], [bad], [2.0]])
    _, changed, lost = COMPILED.rounded(torch.zeros_like(tile), tile, torch.bfloat16)
    assert not torch.isfinite(torch.tensor([changed, lost])).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_models_of_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    base, tuned = halves(1, 70, spread=4).to(dtype), halves(2, 70, spread=4).to(dtype)
    results = [one.merged(base, 0.1, [(0.3, tuned)], torch.float32, dtype) for one in (TORCH, COMPILED)]
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    base, tuned = halves(1, 9, 3).to(dtype), halves(2, 9, 3).to(dtype)
    wide = max(torch.float32, dtype, key=lambda one: one.itemsize)
    found = []
    for one in (TORCH, COMPILED):
        before, tile = one.widened(base, wide)
        one.add_differences(tile, [(0.7, tuned)], base)
        found.append(one.rounded(before, tile, dtype))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_a_view_with_gaps_is_read_right() -> None:
    every = halves(3, 12).reshape(3, 4)
    before, tile = COMPILED.widened(every[:, :2], torch.float32)
    assert torch.equal(before, every[:, :2].float())
    assert torch.equal(tile, before)


def test_few_entries_compile_nothing() -> None:
    before = passes()
    expect(1000)
    assert passes() is before
