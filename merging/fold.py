"""The values of one tensor of a result: base plus deltas, in float32, rounded once.

Order: replacing terms, then those that change what they find in the patch's own order, then additive ones by kind, then
whole models, then merge methods; within a kind in the order of the addends. The caller runs each tensor on one thread,
so equal inputs give equal bytes on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from adapterhub.merging.effects import Effects, effects, part, read, tiles
from adapterhub.merging.errors import NonFinite, NotFoldable
from adapterhub.merging.methods import methods
from adapterhub.merging.ops.grams import symmetric
from adapterhub.merging.ops.lowrank import Factors, Trained, concatenate
from adapterhub.merging.ops.quantise import quantisation_error
from adapterhub.merging.ops.tensors import accumulator, as_matrix, dtype_name, is_finite, is_floating, torch_dtype
from adapterhub.merging.registry import Measured, MergeSite
from adapterhub.merging.statistics import SiteStatistics
from adapterhub.merging.steps import Addend, MethodDelta, ModelDelta, OutputTensor, TermDelta
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import Apply


class Norms(NamedTuple):
    """What a fold did, in Frobenius norms. delta: ‖Δ‖; rounding: ‖round(W + Δ) - (W + Δ)‖.

    quantisation: ‖W - dequant(quant(W))‖ of the coarsest form that a patch here was trained on; None where none was.
    told: what merge methods say of the tensor besides, by name.
    """

    delta: float = 0.0
    rounding: float = 0.0
    quantisation: float | None = None
    told: Mapping[str, float] = {}


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
    told: dict[str, float] = {}
    whole = _effects(output.name, output.addends, W, wide, told)
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
    norms = squares.norms()._replace(quantisation=max(errors, default=None), told=told)
    return Folded(_checked(result, output, W), norms)


def change(output: OutputTensor) -> torch.Tensor:
    """What the addends of an output make of its base's values, before any rounding: their delta, in float32 or 64.

    Raises NonFinite, and NotFoldable for a base other than 16 to 64 bits of float.
    """
    import torch

    W = read(output.base)
    wide = _working_dtype(output, W)
    source = W.to(wide, memory_format=torch.contiguous_format)
    found = _effects(output.name, output.addends, W, wide, {}).change(source)
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


def _effects(
    name: str, addends: Sequence[Addend], W: torch.Tensor, wide: torch.dtype, told: dict[str, float]
) -> Effects:
    """The effect of all addends on a site with the base's values W, in the order in which they act.

    told: what their methods say of it is put there.
    """
    import torch

    device = str(W.device)
    of_terms = effects([(one.weight, one.delta.term) for one in addends if isinstance(one.delta, TermDelta)], W)
    others: list[Apply] = []
    for addend in addends:
        match addend.delta:
            case ModelDelta(tuned=tuned, base=base):
                others.append(_difference(read(tuned, device), read(base, device), addend.weight))
            case MethodDelta():
                merged = _merge(name, addend.delta, W.to(wide, memory_format=torch.contiguous_format), told)
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


def _merge(name: str, step: MethodDelta, W: torch.Tensor, told: dict[str, float]) -> torch.Tensor:
    spec = methods()[step.method]
    measured = tuple(_measured(name, one, str(W.device)) for one in step.statistics)
    site = MergeSite(name, W, step.digests, step.depth, told, measured)
    if spec.takes_trained:
        return _merge_trained(name, step, site)
    products = _products(step, W) if spec.on_factors is not None else None
    if products is not None:
        for number, product in enumerate(products, 1):
            _check_delta(name, step, number, *product)
        left, right = spec.merge_factors(products, step.weights, step.parameters, site)
        return (left.double() @ right.double()).to(W.dtype).view(W.shape)
    deltas, here = [], W
    for number, (weight, addends) in enumerate(zip(step.weights, step.inputs, strict=True), 1):
        deltas.append(_effects(name, addends, here, here.dtype, told).change(here))
        _check_delta(name, step, number, deltas[-1])
        if spec.is_sequential:
            here = here.add(deltas[-1], alpha=weight)
    return spec.merge(deltas, step.weights, step.parameters, site)


def _measured(name: str, carried: SiteStatistics, device: str) -> Measured:
    """What a patch carries, read: triangles as whole matrices. Raises NonFinite, which names the file's tensor."""
    for handle in carried.handles:
        if not is_finite(read(handle, device)):
            raise NonFinite(name, f"the statistics that a patch carries, {handle.name}")
    gram = None if carried.gram is None else symmetric(read(carried.gram, device))
    fisher = None if carried.fisher is None else read(carried.fisher, device).double()
    return Measured(gram, fisher, carried.count, carried.is_transposed, carried.fisher_norm)


def _merge_trained(name: str, step: MethodDelta, site: MergeSite) -> torch.Tensor:
    """The delta that a method makes of LoRAs' own factors; the plan has let nothing else through."""
    given = [_trained(addends, str(site.base.device)) for addends in step.inputs]
    for number, one in enumerate(given, 1):
        _check_delta(name, step, number, *([] if one is None else [one.A, one.B]))
    left, right = methods()[step.method].merge_factors(given, step.weights, step.parameters, site)
    terms_here = (one.delta.term for addends in step.inputs for one in addends if isinstance(one.delta, TermDelta))
    product = (left @ right).T if next(terms_here).options.get("transpose") else left @ right
    return product.to(site.base.dtype).reshape(site.base.shape)


def _trained(addends: Sequence[Addend], device: str) -> Trained | None:
    for addend in addends:
        assert isinstance(addend.delta, TermDelta)
        one = part(addend.delta.term, addend.weight, device)
        A, B = (one.fields[field].flatten(1).double() for field in "AB")
        return Trained(A, B, one.weight)
    return None


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
