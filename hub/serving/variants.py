"""Makes of a recipe the tensors in which its result differs from the base in memory.

Computes with torch: only an engine's process, and one that writes files for an engine, loads this.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from adapterhub.hub.errors import HubError, InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving.protocol import VariantSpec
from adapterhub.merging import engine, errors
from adapterhub.merging.checkpoint import DTYPE_BITS
from adapterhub.merging.effects import part
from adapterhub.merging.ops.lowrank import Factors, concatenate
from adapterhub.merging.ops.tensors import is_finite
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.steps import Addend, OutputTensor, TermDelta
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from adapterhub.hub.serving.resident import Base

_REFUSALS: dict[type[errors.MergingError], type[HubError]] = {
    errors.ExpressionError: InvalidRequest,
    errors.InvalidParameter: InvalidRequest,
    errors.InvalidRecipe: InvalidRequest,
    errors.RecipeFileError: InvalidRequest,
    errors.NotRepresentable: InvalidRequest,
    errors.PlanTooLarge: TooLarge,
    errors.RecipeTooLarge: TooLarge,
    errors.UnknownEngine: InvalidRequest,
    errors.UnknownMethod: InvalidRequest,
    errors.UnknownName: InvalidRequest,
}
"""What the service calls a refusal of the algebra; any other is a patch that does not fit."""


def planned(spec: VariantSpec, memory_bytes: int, *, as_kind: str | None = None) -> Plan:
    """The plan of a recipe, from configurations and headers. memory_bytes: what its largest step may take.

    as_kind: a patch kind to make instead of a model, as `plan` takes it.

    Raises UnfitPatch, InvalidRequest, TooLarge.
    """
    with refusals():
        recipe = parse(spec.expression)
        given = {source.reference: source for source in spec.sources}
        sources = {ref: given[str(ref)] for ref in recipe.references() if str(ref) in given}
        inputs = {ref: Input(one.name, one.folder, one.path, one.kind) for ref, one in sources.items()}
        return plan(recipe, inputs, as_kind=as_kind, memory_bytes=memory_bytes, attaches=True)


def size_bytes(plan: Plan) -> int:
    """Bytes of the tensors that `tensors` makes, and of the run-time patches."""
    touched = (output for output in plan.outputs if output.name in plan.touched)
    merged = sum(prod(output.shape) * DTYPE_BITS[output.dtype] // 8 for output in touched)
    return merged + sum(one.size_bytes for one in plan.attachments)


def tensors(plan: Plan, base: Base) -> dict[str, Tensor]:
    """The tensors that differ from the base's, by their names in the weight files, on the base's device.

    The base's are not modified. Raises UnfitPatch.
    """
    if not plan.touched:
        return {}
    with refusals():
        return engine.variant(plan, device=str(base.device), base=base.tensors())


@dataclass(frozen=True)
class Beside:
    """What is added to weights without touching them, weights and scales in it, by names in the weight files.

    factors: left (out, r) and right (r, in), of which the product is added. entries: flat positions in the weight as
    stored, int64 (nnz,), and what is added there, float32 (nnz,); a position may come several times.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    entries: dict[str, tuple[Tensor, Tensor]]


def beside_bytes(plan: Plan, itemsize: int) -> int | None:
    """Bytes of what `beside` gives once it is used; None for a plan that does more than add products and entries.

    itemsize: bytes of an entry in the dtype in which the base computes.

    None too where they would be more than half of the merged tensors: then nothing speaks for them.
    """
    if plan.attachments or not plan.touched:
        return None
    total = merged = 0
    for output in plan.outputs:
        if output.name in plan.touched:
            if not output.addends:
                return None
            merged += itemsize * prod(output.shape)
            for addend in output.addends:
                size = _beside_bytes(addend, itemsize)
                if size is None:
                    return None
                total += size
    return total if 2 * total <= merged else None


def _beside_bytes(addend: Addend, itemsize: int) -> int | None:
    if not isinstance(addend.delta, TermDelta):
        return None
    term = addend.delta.term
    spec = terms()[term.term]
    shapes = {name: handle.shape for name, handle in term.fields.items()}
    if not spec.is_additive:
        return None
    if spec.factor_sizes is not None:
        rows, rank, columns = spec.factor_sizes(shapes, term.options)
        return itemsize * rank * (rows + columns)
    # a position of four bytes and a float32
    return None if spec.entry_count is None else 8 * spec.entry_count(shapes)


def beside(plan: Plan) -> Beside:
    """What a plan adds of which `beside_bytes` knows the size. Raises UnfitPatch."""
    found = Beside({}, {})
    with refusals():
        for output in plan.outputs:
            if output.name in plan.touched:
                _add_beside(found, output)
    return found


def _add_beside(found: Beside, output: OutputTensor) -> None:
    import torch

    pieces, positions, values = [], [], []
    for addend in output.addends:
        assert isinstance(addend.delta, TermDelta)
        spec, one = terms()[addend.delta.term.term], part(addend.delta.term, addend.weight)
        if spec.factors is not None:
            pieces.append(Factors(*spec.factors(one, output.shape)))
        else:
            assert spec.entries is not None
            at, added = spec.entries(one, output.shape)
            positions.append(at)
            values.append(added)
    if pieces:
        found.factors[output.name] = concatenate(pieces)
    if positions:
        found.entries[output.name] = torch.cat(positions), torch.cat(values)
    given = (*found.factors.get(output.name, ()), *values)
    if not all(is_finite(one) for one in given):
        raise errors.NonFinite(output.name, "the patches")


@contextmanager
def refusals() -> Iterator[None]:
    """Lets the algebra's refusals out as the service's."""
    try:
        yield
    except errors.MergingError as error:
        raise refusal(error) from error


def refusal(error: errors.MergingError) -> HubError:
    """What the service says where the algebra refuses."""
    kinds = (_REFUSALS[kind] for kind in type(error).__mro__ if kind in _REFUSALS)
    return next(kinds, UnfitPatch)(str(error))
