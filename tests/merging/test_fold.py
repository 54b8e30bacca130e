from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from adapterhub.merging import fold as folds
from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import Cancelled, NonFinite, NotFoldable
from adapterhub.merging.methods import methods
from adapterhub.merging.methods.ties import Parameters, ties
from adapterhub.merging.ops.tensors import dtype_name, to_bytes
from adapterhub.merging.ops.tiles import TILE_ELEMENTS
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.statistics import SiteStatistics
from adapterhub.merging.steps import Addend, MethodDelta, ModelDelta, OutputTensor, TermDelta

DIGEST = "sha256:" + "0" * 64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def handle(tensor: torch.Tensor, name: str = "w") -> TensorHandle:
    return TensorHandle.of_bytes(name, dtype_name(tensor.dtype), tensor.shape, to_bytes(tensor))


def output(base: torch.Tensor, *addends: Addend, dtype: str | None = None) -> OutputTensor:
    return OutputTensor("w", dtype or dtype_name(base.dtype), tuple(base.shape), handle(base), addends)


def term(kind: str, weight: float = 1.0, scale: float = 1.0, **fields: torch.Tensor) -> Addend:
    handles = {name: handle(tensor, name) for name, tensor in fields.items()}
    options = {"index": "flat"} if kind == "sparse" else {}
    return Addend(weight, TermDelta(SiteTerm("w", kind, handles, scale, options), DIGEST))


def lora(shape: tuple[int, int], weight: float = 1.0, seed: int = 1, r: int = 4) -> tuple[Addend, torch.Tensor]:
    A, B = random(r, shape[1], seed=seed), random(shape[0], r, seed=seed + 100)
    return term("lowrank", weight, 2.0, A=A, B=B), 2.0 * weight * B.double() @ A.double()


class Folded(NamedTuple):
    tensor: torch.Tensor
    norms: folds.Norms


def fold(output: OutputTensor, base: torch.Tensor | None = None, check: Callable[[], None] = lambda: None) -> Folded:
    """Both ways: rows one after the other, with what was measured, and the whole tensor without, bit for bit equal."""
    folding = folds.Folding(output, base=base, check=check)
    rows = [rows.clone() for _, rows in folding]
    whole = folds.fold(output, base=base)
    tensor = torch.cat(rows).view(whole.shape) if rows else whole
    assert torch.equal(tensor.reshape(-1).view(torch.uint8), whole.reshape(-1).view(torch.uint8))
    return Folded(whole, folding.norms())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_sum_of_every_sort_of_delta_is_rounded_once(dtype: torch.dtype) -> None:
    W = random(40, 30, dtype=dtype)
    first, first_delta = lora((40, 30), 0.7, seed=1)
    second, second_delta = lora((40, 30), -0.3, seed=2, r=2)
    val, idx = random(3, seed=3), torch.tensor([0, 17, 1199], dtype=torch.int32)
    tuned, other = random(40, 30, seed=4, dtype=dtype), random(40, 30, seed=5, dtype=dtype)
    merged = MethodDelta("ties", Parameters(density=0.5), (1.0, 0.5), ((first,), (second,)))
    addends = [
        first,
        second,
        term("sparse", 0.5, val=val, idx=idx),
        Addend(0.25, ModelDelta(handle(tuned), handle(other))),
        Addend(2.0, merged),
    ]
    expected = W.double() + first_delta + second_delta + 0.25 * (tuned.double() - other.double())
    expected.view(-1)[idx.long()] += 0.5 * val.double()
    expected += 2.0 * ties([first_delta, second_delta], (1.0, 0.5), Parameters(density=0.5))
    result = fold(output(W, *addends)).tensor
    assert result.dtype == dtype
    rounded = expected.to(dtype)
    if dtype in (torch.bfloat16, torch.float16):
        assert (result != rounded).double().mean() < 2e-3  # float32 sums may fall on the other side of a tie
    torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=4e-6)


def test_two_loras_are_rounded_together_and_not_one_by_one() -> None:
    W = random(64, 64, dtype=torch.bfloat16)
    first, first_delta = lora((64, 64), 0.01, seed=1)
    second, second_delta = lora((64, 64), 0.01, seed=2)
    together = fold(output(W, first, second)).tensor
    exact = (W.double() + first_delta + second_delta).to(torch.bfloat16)
    one_by_one = fold(output(fold(output(W, first)).tensor, second)).tensor
    assert (together != exact).float().mean() < 1e-3
    assert (one_by_one != exact).float().mean() > 0.05


def test_a_replacement_acts_before_everything_else() -> None:
    W, value = random(5, 5), random(5, 5, seed=1)
    added, delta = lora((5, 5))
    result = fold(output(W, added, term("replace", value=value))).tensor
    torch.testing.assert_close(result.double(), value.double() + delta, rtol=1e-6, atol=1e-6)


def test_a_method_sees_replacements_as_changes_of_the_base() -> None:
    W, value = random(5, 5), random(5, 5, seed=1)
    merged = MethodDelta("ties", Parameters(), (1.0, 1.0), ((term("replace", value=value),), ()))
    torch.testing.assert_close(fold(output(W, Addend(1.0, merged))).tensor, value, rtol=1e-6, atol=1e-6)


def test_an_input_without_a_delta_counts_as_zero() -> None:
    W = random(5, 5)
    added, delta = lora((5, 5))
    merged = MethodDelta("ties", Parameters(), (1.0, 1.0), ((added,), ()))
    result = fold(output(W, Addend(1.0, merged))).tensor
    torch.testing.assert_close(result.double(), W.double() + delta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (1, 5), (5, 1), (3, 2, 2), (7,), ()])
def test_sites_of_any_shape_take_dense_deltas(shape: tuple[int, ...]) -> None:
    W, change = random(*shape, dtype=torch.bfloat16), random(*shape, seed=1)
    result = fold(output(W, term("dense", 0.5, delta=change))).tensor
    assert result.shape == W.shape
    assert torch.equal(result, (W.float() + 0.5 * change).bfloat16())


def test_large_tensors_are_done_in_tiles_with_the_same_values() -> None:
    rows = TILE_ELEMENTS // 512 * 2 + 3
    W = random(rows, 512)
    added, delta = lora((rows, 512))
    val, idx = random(2, seed=3), torch.tensor([5, rows * 512 - 1])
    result = fold(output(W, added, term("sparse", val=val, idx=idx))).tensor
    expected = W.double() + delta
    expected.view(-1)[idx] += val.double()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_bytes_do_not_depend_on_where_the_factors_lie_in_memory() -> None:
    W, A, B = random(33, 47), random(3, 47, seed=1), random(33, 3, seed=2)
    plain = fold(output(W, term("lowrank", A=A, B=B))).tensor
    raw = b"xxxx" + bytes(to_bytes(A))
    shifted = TensorHandle.of_bytes("A", "F32", A.shape, memoryview(raw)[4:])
    moved = Addend(1.0, TermDelta(SiteTerm("w", "lowrank", {"A": shifted, "B": handle(B)}), DIGEST))
    assert torch.equal(plain, fold(output(W, moved)).tensor)


def test_a_tensor_without_deltas_may_change_its_dtype() -> None:
    W = random(4, 4)
    assert torch.equal(fold(output(W, dtype="BF16")).tensor, W.bfloat16())


def test_the_base_is_not_modified() -> None:
    W = random(4, 4)
    before = W.clone()
    added, _ = lora((4, 4))
    fold(output(W, added), base=W)
    assert torch.equal(W, before)


def test_what_rounding_took_from_the_delta_is_reported() -> None:
    W = torch.ones(64, 64, dtype=torch.bfloat16)
    tiny = fold(output(W, term("dense", delta=torch.full((64, 64), 1e-4))))
    assert tiny.norms.delta == pytest.approx(64e-4, rel=1e-3)
    assert tiny.norms.rounding == pytest.approx(tiny.norms.delta)
    assert torch.equal(tiny.tensor, W)
    large = fold(output(W, term("dense", delta=torch.ones(64, 64))))
    assert large.norms.rounding == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_in_a_patch_is_refused_by_name(bad: float) -> None:
    change = random(4, 4)
    change[2, 2] = bad
    with pytest.raises(NonFinite, match="w: NaN or infinity in the result as F32, with patches sha256:0000"):
        fold(output(random(4, 4), term("dense", delta=change)))


def test_a_bad_number_in_the_base_is_named_as_such() -> None:
    W = random(4, 4)
    W[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="in the base"):
        fold(output(W, lora((4, 4))[0]))


def test_a_sum_too_large_for_its_dtype_is_refused() -> None:
    W = torch.full((2, 2), 60000.0, dtype=torch.float16)
    with pytest.raises(NonFinite, match="F16"):
        fold(output(W, term("dense", delta=torch.full((2, 2), 60000.0))))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_base_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(NotFoldable, match="dequantise the base first"):
        fold(output(torch.ones(2, 2).to(dtype), lora((2, 2))[0]))


def test_a_caller_can_stop_between_tiles() -> None:
    def stop() -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        fold(output(random(4, 4), lora((4, 4))[0]), check=stop)


def test_a_mask_selects_entries_of_its_delta() -> None:
    W, change = random(6, 7), random(6, 7, seed=1)
    selected = random(6, 7, seed=2) > 0
    bits = torch.tensor(np.packbits(selected.numpy(), bitorder="little"))
    result = fold(output(W, term("mask", 0.5, bits=bits, delta=change))).tensor
    assert torch.equal(result, torch.where(selected, W + 0.5 * change, W))


@pytest.mark.parametrize("method", sorted(methods()))
def test_no_method_hides_a_bad_number(method: str) -> None:
    change = random(4, 4)
    change[2, 2] = float("nan")
    bad = term("dense", delta=change)
    if methods()[method].takes_trained:
        bad = term("lowrank", A=random(4, 4), B=change)
    inputs: tuple[tuple[Addend, ...], ...] = ((bad,), (lora((4, 4))[0],))
    if methods()[method].inputs[1] == 1:
        inputs = inputs[:1]
    step = MethodDelta(method, methods()[method].parameters(), (1.0, 1.0)[: len(inputs)], inputs, ("a", "b"))
    if methods()[method].statistics == "fisher":
        step = replace(step, statistics=(SiteStatistics(fisher=handle(random(4, 4).abs())),) * 2)
    with pytest.raises(NonFinite):
        fold(output(random(4, 4), Addend(1.0, step)))


def test_a_bad_number_in_what_a_patch_carries_is_named() -> None:
    bad = SiteStatistics(gram=handle(torch.full((10,), float("nan")), "q::gram"))
    inputs = ((term("dense", delta=random(4, 4)),),)
    step = MethodDelta("regmean", methods()["regmean"].parameters(), (1.0,), inputs, ("a",), statistics=(bad,))
    with pytest.raises(NonFinite, match="q::gram"):
        fold(output(random(4, 4), Addend(1.0, step)))
