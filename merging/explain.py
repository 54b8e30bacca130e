"""What a plan will do, in words and numbers, before it is run: the method of each tensor, bytes, time, approximations.

Never imports torch: whatever is told follows from names, shapes and the registries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import DTYPE_BITS
from adapterhub.merging.methods import methods
from adapterhub.merging.patch import ExportTensor
from adapterhub.merging.plan import FLOATS, Plan
from adapterhub.merging.registry import MethodSpec
from adapterhub.merging.steps import Addend, MethodDelta, OutputTensor, TermDelta, handles_of
from adapterhub.merging.terms import terms

COPIED, CAST, BROUGHT, JOINED = "copied", "cast", "brought by a patch", "joined factors"
"""What happens to a tensor that no patch and no method changes; the last two: that only a patch has, and of a patch."""

_EFFECTS: Mapping[str, str] = {"additive": "sum", "affine": "transformed", "replace": "replaced"}


@dataclass(frozen=True)
class Rate:
    """How fast merges go. bytes_per_s: of what is read and written together. source: where the number is from."""

    bytes_per_s: float
    source: str


STATED = Rate(200e6, "stated: 200 MB/s are assumed, as no large merge was measured here")
"""What is assumed of a machine of which nothing is known: about what one core reads, adds and writes."""


def _stated(methods: Mapping[str, int]) -> Rate:
    return STATED


def explained(plan: Plan, rate_of: Callable[[Mapping[str, int]], Rate] = _stated) -> dict[str, Any]:
    """`plan.describe()` with the method of each tensor, dtypes, bytes to move, time, and what is approximated; JSON.

    methods: number of tensors by method. per_tensor: in the order of names. estimate: seconds at the rate that rate_of
    says of these methods, which moves read_bytes and size_bytes; methods that decompose take longer than bytes tell.
    """
    per_tensor = [_output(one, plan) for one in plan.outputs] if plan.export is None else _exported(plan)
    read_bytes = sum(one["read_bytes"] for one in per_tensor)
    methods_here = dict(Counter(one["method"] for one in per_tensor).most_common())
    rate = rate_of(methods_here)
    seconds = (read_bytes + plan.size_bytes) / rate.bytes_per_s
    return plan.describe() | {
        "methods": methods_here,
        "dtypes": dict(Counter(one["dtype"] for one in per_tensor).most_common()),
        "per_tensor": per_tensor,
        "read_bytes": read_bytes,
        "estimate": {"seconds": seconds, "bytes_per_s": rate.bytes_per_s, "source": rate.source},
        "approximations": list(approximations(plan)),
    }


def approximations(plan: Plan) -> Iterator[str]:
    """Sentences on what in the result is no exact arithmetic on its inputs: draws, decompositions, casts, untested."""
    for name, seeds in _methods(plan).items():
        yield from _of_method(methods()[name], seeds)
    for ref, one in plan.inputs:
        kind = patches.kinds().get(one.kind)
        if kind is not None and kind.folds == "peft":
            yield f"{ref}: a {kind.name} is folded by peft itself, in the arithmetic of its version here"
    yield from _rounding(plan)


def _of_method(spec: MethodSpec, seeds: set[int]) -> Iterator[str]:
    if spec.is_experimental:
        yield f"{spec.name}: experimental, known from its paper alone ({spec.source})"
    if seeds:
        told = ", ".join(str(seed) for seed in sorted(seeds))
        yield f"{spec.name}: draws random masks by seed {told}; the same seed gives the same bytes"
    if spec.on_factors is not None:
        yield f"{spec.name}: decomposes the deltas, and drops directions of rounding size"


def _rounding(plan: Plan) -> Iterator[str]:
    narrow: Counter[str] = Counter()
    for one in plan.outputs:
        cut = one.base.dtype in FLOATS and one.dtype != one.base.dtype
        if one.dtype in ("BF16", "F16") and (one.addends or cut):
            narrow[one.dtype] += 1
    for dtype, count in narrow.items():
        what = "1 tensor is" if count == 1 else f"{count} tensors are"
        yield f"{what} rounded once to {FLOATS[dtype]}; the result's report says what that takes of the change"


def _methods(plan: Plan) -> dict[str, set[int]]:
    """The merge methods in the plan, sorted, each with its seeds."""
    found: dict[str, set[int]] = {}
    pending = [addend for output in plan.outputs for addend in output.addends]
    while pending:
        delta = pending.pop().delta
        if isinstance(delta, MethodDelta):
            seed = getattr(delta.parameters, "seed", None)
            found.setdefault(delta.method, set()).update(() if seed is None else (seed,))
            pending += [addend for one in delta.inputs for addend in one]
    return dict(sorted(found.items()))


def _output(output: OutputTensor, plan: Plan) -> dict[str, Any]:
    read = output.base.nbytes + sum(one.nbytes for one in handles_of(output.addends))
    return _row(output, _method(output, plan), read)


def _exported(plan: Plan) -> list[dict[str, Any]]:
    assert plan.export is not None
    rows = []
    for one in sorted(plan.export.tensors, key=lambda one: one.name):
        handles = [one.stored] if one.stored else [h for _, term in one.parts for h in term.fields.values()]
        rows.append(_row(one, COPIED if one.stored else JOINED, sum(handle.nbytes for handle in handles)))
    return rows


def _row(one: OutputTensor | ExportTensor, method: str, read_bytes: int) -> dict[str, Any]:
    size_bytes = prod(one.shape) * DTYPE_BITS[one.dtype] // 8
    row = {"name": one.name, "method": method, "dtype": one.dtype, "shape": list(one.shape)}
    return row | {"size_bytes": size_bytes, "read_bytes": read_bytes}


def _method(output: OutputTensor, plan: Plan) -> str:
    if output.addends:
        return " + ".join(dict.fromkeys(_named(addend) for addend in output.addends))
    if output.name not in plan.base.tensors and output.base.name not in plan.base.tensors:
        return BROUGHT
    return COPIED if output.is_copy else CAST


def _named(addend: Addend) -> str:
    """ "sum", or a method with those that its inputs are made by: "ties", "ties(dare_linear)"."""
    match addend.delta:
        case TermDelta(term=term):
            return _EFFECTS[terms()[term.term].effect]
        case MethodDelta(method=method, inputs=inputs):
            inner = dict.fromkeys(_named(one) for parts in inputs for one in parts)
            nested = [name for name in inner if name not in _EFFECTS.values()]
            return f"{method}({', '.join(nested)})" if nested else method
    return "sum"
