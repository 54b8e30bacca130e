"""The values of one tensor of a result: base plus deltas, in float32, rounded once.

Order: replacing terms, then those that change what they find in the patch's own order, then additive ones by kind, then
whole models, then merge methods; within a kind in the order of the addends. The caller runs each tensor on one thread,
so equal inputs give equal bytes on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from adapterhub.merging.effects import Effects, effects, part, read
from adapterhub.merging.errors import NonFinite, NotFoldable
from adapterhub.merging.methods import methods
from adapterhub.merging.ops.grams import symmetric
from adapterhub.merging.ops.lowrank import Factors, Trained, concatenate
from adapterhub.merging.ops.passes import passes
from adapterhub.merging.ops.quantise import quantisation_error
from adapterhub.merging.ops.tensors import accumulator, as_matrix, dtype_name, is_finite, is_floating, torch_dtype
from adapterhub.merging.ops.tiles import RELEASE_TILES, TILE_ELEMENTS, tiles
from adapterhub.merging.registry import Combination, Measured, MergeSite, Piece
from adapterhub.merging.statistics import SiteStatistics
from adapterhub.merging.steps import Addend, MethodDelta, ModelDelta, OutputTensor, TermDelta, handles_of
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import Apply


Ranges: TypeAlias = Callable[[], Iterator[tuple[int, int]]]
"""Gives the ranges of rows in which a tensor is read once, from the first to the last."""


class Norms(NamedTuple):
    """What a fold did, in Frobenius norms. delta: ‖Δ‖; rounding: ‖round(W + Δ) - (W + Δ)‖.

    quantisation: ‖W - dequant(quant(W))‖ of the coarsest form that a patch here was trained on; None where none was.
    told: what merge methods say of the tensor besides, by name.
    """

    delta: float = 0.0
    rounding: float = 0.0
    quantisation: float | None = None
    told: Mapping[str, float] = {}


def fold(output: OutputTensor, *, device: str = "cpu", base: torch.Tensor | None = None) -> torch.Tensor:
    """The values of one output tensor on a device, in its dtype and shape. Arguments and errors as `Folding`'s."""
    import torch

    folding = Folding(output, device=device, base=base)
    result = torch.empty(folding.W.shape, dtype=torch_dtype(output.dtype), device=folding.W.device)
    folding.fill(as_matrix(result))
    return result


class Folding:
    """The values of one output tensor, some rows at a time as they are iterated: (first row, rows as a matrix).

    W: the base's values. base: those where they are already on the device; not modified. check is called between rows
    and may raise. Raises NonFinite for NaN or infinity in the result, NotFoldable for a base other than 16 to 64 bits
    of float.
    """

    def __init__(
        self,
        output: OutputTensor,
        *,
        device: str = "cpu",
        base: torch.Tensor | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.W = read(output.base, device) if base is None else base
        self._output = output
        self._check = check
        self._dtype = torch_dtype(output.dtype)
        self._squares = _Squares()
        self._told: dict[str, float] = {}

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:

        source = as_matrix(self.W)
        if not self._output.addends:
            for start, stop in self._tiles():
                yield start, self._checked(source[start:stop].to(self._dtype))
            return
        wide = _working_dtype(self._output, self.W)
        whole = _effects(self._output.name, self._output.addends, self.W, wide, self._tiles, self._told)
        of_models = _of_models_alone(whole, self._output)
        self._squares = _Squares()
        for start, stop in self._tiles():
            if of_models is not None:
                of_base, rows = of_models.of_base, of_models.rows(start, stop)
                rounded, *squares = passes().merged(source[start:stop], of_base, rows, wide, self._dtype)
            else:
                before, tile = passes().widened(source[start:stop], wide)
                whole.act(tile, start, stop)
                rounded, *squares = passes().rounded(before, tile, self._dtype)  # the one rounding, to nearest even
            is_sound = self._squares.add(*squares)
            yield start, rounded if is_sound else self._checked(rounded)

    def fill(self, target: torch.Tensor) -> None:
        """Put all values into a matrix, contiguous and of the output's dtype, and measure nothing: fewer passes."""
        import torch

        source = as_matrix(self.W)
        wide = _working_dtype(self._output, self.W) if self._output.addends else self._dtype
        act = _effects(self._output.name, self._output.addends, self.W, wide, self._tiles, self._told).act
        for start, stop in self._tiles():
            here = target[start:stop]
            if wide == self._dtype:
                act(here.copy_(source[start:stop]), start, stop)
            else:
                tile = source[start:stop].to(wide, copy=True, memory_format=torch.contiguous_format)
                act(tile, start, stop)
                here.copy_(tile)  # the one rounding, to nearest even
            self._checked(here)

    def norms(self) -> Norms:
        """What was changed, once all rows were computed."""
        if not self._output.addends:
            return Norms()
        errors = [quantisation_error(as_matrix(self.W), one) for one in self._output.quantisations]
        return self._squares.norms()._replace(quantisation=max(errors, default=None), told=self._told)

    def _tiles(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows; what was read of mapped files is given back now and then, so that memory stays small."""
        handles = [self._output.base, *handles_of(self._output.addends)]
        for number, (start, stop) in enumerate(tiles(as_matrix(self.W)), 1):
            self._check()
            yield start, stop
            if number % RELEASE_TILES == 0:
                for handle in handles:
                    handle.release()
        for handle in handles:
            handle.release()

    def _checked(self, rows: torch.Tensor) -> torch.Tensor:
        if is_finite(rows):
            return rows
        if not is_finite(self.W):
            raise NonFinite(self._output.name, "the base")
        terms = [addend.delta for addend in self._output.addends if isinstance(addend.delta, TermDelta)]
        digests = ", ".join(sorted({one.digest for one in terms})) or "none"
        raise NonFinite(self._output.name, f"the result as {self._output.dtype}, with patches {digests}")


def change(output: OutputTensor) -> torch.Tensor:
    """What the addends of an output make of its base's values, before any rounding: their delta, in float32 or 64.

    Raises NonFinite, and NotFoldable for a base other than 16 to 64 bits of float.
    """
    import torch

    W = read(output.base)
    wide = _working_dtype(output, W)
    source = W.to(wide, memory_format=torch.contiguous_format)
    found = _effects(output.name, output.addends, W, wide, partial(tiles, as_matrix(source)), {}).change(source)
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
    name: str, addends: Sequence[Addend], W: torch.Tensor, wide: torch.dtype, ranges: Ranges, told: dict[str, float]
) -> Effects:
    """The effect of all addends on a site with the base's values W, in the order in which they act.

    told: what their methods say of it is put there.
    """
    import torch

    device = str(W.device)
    of_terms = effects([(one.weight, one.delta.term) for one in addends if isinstance(one.delta, TermDelta)], W)
    models: dict[int, list[tuple[float, ModelDelta]]] = {}
    others: list[Apply] = []
    for addend in addends:
        match addend.delta:
            case ModelDelta(base=base):
                models.setdefault(id(base), []).append((addend.weight, addend.delta))
            case MethodDelta() if _is_by_pieces(addend.delta, W):
                pieces = StepPieces(name, addend.delta, W, wide, ranges, told)
                others.append(_Piecewise(pieces, addend.delta, addend.weight))
            case MethodDelta():
                merged = _merge(name, addend.delta, W.to(wide, memory_format=torch.contiguous_format), told)
                others.append(_addition(merged, addend.weight))
            case TermDelta():
                pass  # with all the others of its kind
    differences = [_Differences(group, device) for group in models.values()]
    return Effects(of_terms.changing, (*of_terms.additive, *differences, *others))


class _Differences:
    """What adds the weighted differences of models from one and the same base. It is an Apply."""

    of_base = 0.0

    def __init__(self, weighted: Sequence[tuple[float, ModelDelta]], device: str) -> None:
        self.base = weighted[0][1].base
        self._here = as_matrix(read(self.base, device))
        self._there = [(weight, as_matrix(read(delta.tuned, device))) for weight, delta in weighted]

    def rows(self, start: int, stop: int) -> list[tuple[float, torch.Tensor]]:
        """The models' own values there, and their weights."""
        return [(weight, tuned[start:stop]) for weight, tuned in self._there]

    def __call__(self, tile: torch.Tensor, start: int, stop: int) -> None:
        passes().add_differences(tile, self.rows(start, stop), self._here[start:stop])


def _of_models_alone(whole: Effects, output: OutputTensor) -> _Differences | _Piecewise | None:
    """What gives the models' rows, where the whole effect is that of models on the tensor that they differ from."""
    match whole:
        case Effects(changing=(), additive=(_Differences() as only,)) if only.base is output.base:
            return only
        case Effects(changing=(), additive=(_Piecewise() as only,)) if only.is_of_models:
            return only
    return None


def _is_by_pieces(step: MethodDelta, W: torch.Tensor) -> bool:
    """Whether the method may see some rows at a time; where it has limits already it must."""
    if step.limits:
        return True
    is_whole = W.dim() < 2 and W.numel() > TILE_ELEMENTS  # a vector is one row, and would not be one piece
    return methods()[step.method].by_pieces is not None and W.device.type == "cpu" and not is_whole


class _Piecewise:
    """What adds a method's result where some rows suffice to know it. It is an Apply.

    is_of_models: whether that is a sum of the base and of models' differences from it, of_base times the base among
    them.
    """

    def __init__(self, pieces: StepPieces, step: MethodDelta, weight: float) -> None:
        by_pieces = methods()[step.method].by_pieces
        assert by_pieces is not None
        self._pieces, self._weight = pieces, weight
        self._merged = by_pieces(pieces, step.weights, step.parameters)
        self.of_base = weight * self._merged.of_base if isinstance(self._merged, Combination) else 0.0
        self.is_of_models = isinstance(self._merged, Combination) and pieces.are_models

    def rows(self, start: int, stop: int) -> list[tuple[float, torch.Tensor]]:
        """The models' own values there, and their weights, where it is a sum of such."""
        assert isinstance(self._merged, Combination)
        return [
            (self._weight * factor, tuned)
            for factor, tuned in zip(self._merged.of_deltas, self._pieces.tuned(start, stop), strict=True)
        ]

    def __call__(self, tile: torch.Tensor, start: int, stop: int) -> None:
        piece = self._pieces.checked(start, stop)
        if not isinstance(self._merged, Combination):
            tile.add_(self._merged(piece).view(tile.shape), alpha=self._weight)
            return
        tile.add_(piece.base.view(tile.shape), alpha=self.of_base)  # as `Passes.merged` does it
        for factor, delta in zip(self._merged.of_deltas, piece.deltas, strict=True):
            tile.add_(delta.view(tile.shape), alpha=self._weight * factor)


class StepPieces:
    """The deltas of one step at one tensor, as `registry.Pieces` says."""

    def __init__(
        self,
        name: str,
        step: MethodDelta,
        W: torch.Tensor,
        wide: torch.dtype,
        ranges: Ranges,
        told: dict[str, float],
    ) -> None:
        self.name, self.shape = name, tuple(W.shape)
        self.digests, self.depth, self.limits = step.digests, step.depth, step.limits
        self._step, self._ranges, self._wide = step, ranges, wide
        self._source = as_matrix(W)
        self._tuned = [_only_model(addends, self._source) for addends in step.inputs]
        self._inputs = [_effects(name, addends, W, wide, ranges, told) for addends in step.inputs]

    @property
    def are_models(self) -> bool:
        """Whether every delta is the difference of one model from the very base."""
        return None not in self._tuned

    def tuned(self, start: int, stop: int) -> list[torch.Tensor]:
        """Rows of those models."""
        return [one[start:stop] for one in self._tuned if one is not None]

    def products(self) -> tuple[float, float, float]:
        found = [0.0, 0.0, 0.0]
        for start, stop in self._ranges():
            if self.are_models:
                pair = self._source[start:stop], self.tuned(start, stop)[0]
            else:
                piece = self._piece(start, stop)
                pair = piece.base, piece.base.double() + piece.deltas[0]
            found = [total + part for total, part in zip(found, passes().products(*pair), strict=True)]
        return found[0], found[1], found[2]

    def __iter__(self) -> Iterator[Piece]:
        for start, stop in self._ranges():
            yield self._piece(start, stop)

    def checked(self, start: int, stop: int) -> Piece:
        """Rows start..stop. Raises NonFinite for a delta that the method might hide, or put everywhere."""
        piece = self._piece(start, stop)
        for number, delta in enumerate(piece.deltas, 1):
            _check_delta(self.name, self._step, number, delta)
        return piece

    def _piece(self, start: int, stop: int) -> Piece:
        source = self._source[start:stop]
        base = passes().wide(source, self._wide)
        deltas = []
        for tuned, whole in zip(self._tuned, self._inputs, strict=True):
            if tuned is None:
                deltas.append(whole.change_rows(base, start, stop))
            else:
                deltas.append(passes().difference(tuned[start:stop], source, self._wide))
        return Piece(start * self._source.shape[1], base, deltas)


def _only_model(addends: Sequence[Addend], base: torch.Tensor) -> torch.Tensor | None:
    """The values of the model whose difference from the very base is all there is."""
    if len(addends) != 1 or addends[0].weight != 1.0 or not isinstance(addends[0].delta, ModelDelta):
        return None
    here, there = (as_matrix(read(one)) for one in (addends[0].delta.base, addends[0].delta.tuned))
    is_same = here.data_ptr() == base.data_ptr() and here.dtype == base.dtype and here.is_contiguous()
    return there if is_same else None


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
        whole = _effects(name, addends, here, here.dtype, partial(tiles, as_matrix(here)), told)
        deltas.append(whole.change(here))
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


class _Squares:
    """Sums of squares over tiles: of the delta, and of what rounding took."""

    def __init__(self) -> None:
        self._delta = 0.0
        self._rounding = 0.0

    def add(self, delta: float, rounding: float) -> bool:
        """Count one tile. Whether all its entries are finite; False too where squares overflow."""
        self._delta += delta
        self._rounding += rounding
        return math.isfinite(self._delta) and math.isfinite(self._rounding)

    def norms(self) -> Norms:
        return Norms(math.sqrt(self._delta), math.sqrt(self._rounding))
