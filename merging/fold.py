"""The values of one tensor of a result: base plus deltas, in float32, rounded once.

Order: replacing terms, then those that change what they find in the patch's own order, then additive ones by kind, then
whole models, then merge methods; within a kind in the order of the addends. The caller runs each tensor on one thread,
so equal inputs give equal bytes on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from adapterhub.merging.effects import Effects, effects, part, read, tiles
from adapterhub.merging.errors import NonFinite, NotFoldable
from adapterhub.merging.methods import methods
from adapterhub.merging.ops.lowrank import Factors, concatenate
from adapterhub.merging.ops.quantise import quantisation_error
from adapterhub.merging.ops.tensors import accumulator, as_matrix, dtype_name, is_finite, is_floating, torch_dtype
from adapterhub.merging.registry import MergeSite
from adapterhub.merging.steps import Addend, MethodDelta, ModelDelta, OutputTensor, TermDelta
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import Apply


class Norms(NamedTuple):
    """What a fold did, in Frobenius norms. delta: ‖Δ‖; rounding: ‖round(W + Δ) - (W + Δ)‖.

    quantisation: ‖W - dequant(quant(W))‖ of the coarsest form that a patch here was trained on; None where none was.
    """

    delta: float = 0.0
    rounding: float = 0.0
    quantisation: float | None = None


class Folded(NamedTuple):
    """One computed tensor, and what rounding took of its delta."""

    tensor: torch.Tensor
    norms: Norms


def fold(
    output: OutputTensor,
    *,
    device: str = "cpu",
    base: torch.Tensor | None = None,
    check: Callable[[], None] = lambda: None,
) -> Folded:
    """The values of one output tensor on a device, in its dtype and shape.

    base: the base's values where they are already on the device; not modified. check is called between tiles and may
    raise. Raises NonFinite for NaN or infinity in the result, NotFoldable for a base other than 16 to 64 bits of float.
    """
    import torch

    W = read(output.base, device) if base is None else base
    dtype = torch_dtype(output.dtype)
    if not output.addends:
        return Folded(_checked(W.to(dtype), output, W), Norms())
    wide = _working_dtype(output, W)
    source = as_matrix(W)
    whole = _effects(output.name, output.addends, W, wide)
    result = torch.empty(W.shape, dtype=dtype, device=W.device)
    target = as_matrix(result)
    squares = _Squares(is_rounded=dtype != wide)
    for start, stop in tiles(source):
        check()
        before = source[start:stop].to(wide)
        tile = before.clone(memory_format=torch.contiguous_format)
        whole.act(tile, start, stop)
        target[start:stop] = tile  # the one rounding, to nearest even
        squares.add(before, tile, target[start:stop])
    errors = [quantisation_error(source, one) for one in output.quantisations]
    return Folded(_checked(result, output, W), squares.norms()._replace(quantisation=max(errors, default=None)))


def change(output: OutputTensor) -> torch.Tensor:
    """What the addends of an output make of its base's values, before any rounding: their delta, in float32 or 64.

    Raises NonFinite, and NotFoldable for a base other than 16 to 64 bits of float.
    """
    import torch

    W = read(output.base)
    wide = _working_dtype(output, W)
    source = W.to(wide, memory_format=torch.contiguous_format)
    found = _effects(output.name, output.addends, W, wide).change(source)
    if not is_finite(found):
        raise NonFinite(output.name, "the delta")
    return found


def _working_dtype(output: OutputTensor, W: torch.Tensor) -> torch.dtype:
    """The wider of what base and result are computed in. Raises NotFoldable where either holds no floats of 16 bits."""
    stored = dtype_name(W.dtype)
    if not (is_floating(output.dtype) and is_floating(stored)):
        raise NotFoldable(
            f"{output.name}: {stored} in the base, {output.dtype} asked for; "
            "deltas fold into float16, bfloat16, float32 and float64: dequantise the base first"
        )
    return max(accumulator(output.dtype), accumulator(stored), key=lambda dtype: dtype.itemsize)


def _effects(name: str, addends: Sequence[Addend], W: torch.Tensor, wide: torch.dtype) -> Effects:
    """The effect of all addends on a site with the base's values W, in the order in which they act."""
    import torch

    device = str(W.device)
    of_terms = effects([(one.weight, one.delta.term) for one in addends if isinstance(one.delta, TermDelta)], W)
    others: list[Apply] = []
    for addend in addends:
        match addend.delta:
            case ModelDelta(tuned=tuned, base=base):
                others.append(_difference(read(tuned, device), read(base, device), addend.weight))
            case MethodDelta():
                merged = _merge(name, addend.delta, W.to(wide, memory_format=torch.contiguous_format))
                others.append(_addition(merged, addend.weight))
            case TermDelta():
                pass  # with all the others of its kind
    return Effects(of_terms.changing, (*of_terms.additive, *others))


def _difference(tuned: torch.Tensor, base: torch.Tensor, weight: float) -> Apply:
    there, here = as_matrix(tuned), as_matrix(base)

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        change = there[start:stop].to(tile.dtype) - here[start:stop].to(tile.dtype)
        tile.add_(change, alpha=weight)

    return apply


def _merge(name: str, step: MethodDelta, W: torch.Tensor) -> torch.Tensor:
    spec = methods()[step.method]
    products = _products(step, W) if spec.on_factors is not None else None
    if spec.on_factors is not None and products is not None:
        for number, product in enumerate(products, 1):
            _check_delta(name, step, number, *product)
        left, right = spec.on_factors(products, step.weights, step.parameters)
        return (left.double() @ right.double()).to(W.dtype).view(W.shape)
    deltas, here = [], W
    for number, (weight, addends) in enumerate(zip(step.weights, step.inputs, strict=True), 1):
        deltas.append(_effects(name, addends, here, here.dtype).change(here))
        _check_delta(name, step, number, deltas[-1])
        if spec.is_sequential:
            here = here.add(deltas[-1], alpha=weight)
    return spec.merge(deltas, step.weights, step.parameters, MergeSite(name, W, step.digests, step.depth))


def _check_delta(name: str, step: MethodDelta, number: int, *tensors: torch.Tensor) -> None:
    """Raises NonFinite for a delta that a method might hide, or put everywhere."""
    if not all(map(is_finite, tensors)):
        raise NonFinite(name, f"the delta of input {number} of {step.method}")


def _products(step: MethodDelta, W: torch.Tensor) -> list[Factors] | None:
    """Every input's delta as one product of factors; None where an input is more than low-rank terms of a matrix."""
    factors = terms()["lowrank"].factors
    assert factors is not None
    found = []
    for addends in step.inputs:
        deltas = [(one.weight, one.delta.term) for one in addends if isinstance(one.delta, TermDelta)]
        if len(deltas) < len(addends) or not deltas or any(term.term != "lowrank" for _, term in deltas):
            return None
        found.append(concatenate([Factors(*factors(part(term, w, str(W.device)), W.shape)) for w, term in deltas]))
    return found


def _addition(whole: torch.Tensor, weight: float) -> Apply:
    rows = as_matrix(whole)

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        tile.add_(rows[start:stop], alpha=weight)

    return apply


def _checked(result: torch.Tensor, output: OutputTensor, base: torch.Tensor) -> torch.Tensor:
    if is_finite(result):
        return result
    if not is_finite(base):
        raise NonFinite(output.name, "the base")
    digests = sorted({addend.delta.digest for addend in output.addends if isinstance(addend.delta, TermDelta)})
    raise NonFinite(output.name, f"the result as {output.dtype}, with patches {', '.join(digests) or 'none'}")


class _Squares:
    """Sums of squares over tiles; where nothing is rounded, nothing is summed for it."""

    def __init__(self, *, is_rounded: bool) -> None:
        self._is_rounded = is_rounded
        self._delta = 0.0
        self._rounding = 0.0

    def add(self, before: torch.Tensor, tile: torch.Tensor, rounded: torch.Tensor) -> None:
        self._delta += float((tile - before).norm()) ** 2
        if self._is_rounded:
            self._rounding += float((rounded - tile).norm()) ** 2

    def norms(self) -> Norms:
        return Norms(math.sqrt(self._delta), math.sqrt(self._rounding))
