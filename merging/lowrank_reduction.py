"""A sum of low-rank patches as one of fewer ranks: the nearest there is, and how far it is, module by module.

The factors of all patches of a module are joined, and the singular values of their product come from a QR of each side
and the SVD of a small core, so no matrix of the module's size is made.
Source: Eckart & Young, Psychometrika 1936.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.effects import part
from adapterhub.merging.errors import InvalidParameter, NotRepresentable
from adapterhub.merging.lowrank_export import Pair, pairs_of
from adapterhub.merging.ops.lowrank import Factors, bases, concatenate
from adapterhub.merging.ops.tensors import is_finite, to_bytes
from adapterhub.merging.patch import Export, SiteTerm
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.reduction import Reduction


def reduced(wanted: Reduction, check: Callable[[], None] = lambda: None) -> tuple[Export, Mapping[str, Any]]:
    """The patch to write, its factors computed, and what was lost: relative errors ‖Δ - B·A‖/‖Δ‖, by module too.

    check is called between modules and may raise. Raises NotRepresentable for what is no sum of low-rank terms, and
    InvalidParameter for numbers that are not finite.
    """
    found: list[SiteTerm] = []
    modules: dict[str, dict[str, float]] = {}
    total = lost = 0.0
    for pair in pairs_of(wanted.addends, wanted.base):
        check()
        term, squares, kept = _reduced(pair, wanted)
        whole, missing = math.fsum(squares), math.fsum(squares[kept:])
        modules[pair.module] = {"r": kept, "of": pair.r, "error": math.sqrt(missing / whole) if whole else 0.0}
        total, lost = total + whole, lost + missing
        found.append(term)
    patch = replace(wanted.addends[0][1], terms=tuple(found))
    layers = {one.layer_ranges for _, one in wanted.addends}
    if len(layers) > 1:
        raise NotRepresentable("one adapter repeats layers of its base (layer_replication), another not the same ones")
    export = wanted.export([(1.0, patch)], wanted.base_name, wanted.base)
    return export, {"asked": wanted.asked, "error": math.sqrt(lost / total) if total else 0.0, "modules": modules}


def _reduced(pair: Pair, wanted: Reduction) -> tuple[SiteTerm, list[float], int]:
    """One module's term of few ranks, the squares of its singular values, and how many of them it holds."""
    import torch

    if pair.mag is not None:
        raise NotRepresentable(f"{pair.module}: a DoRA is no sum of low-rank terms, so its rank cannot be reduced")
    factors = concatenate(list(_factors(pair.parts)))
    if not (is_finite(factors.left) and is_finite(factors.right)):
        raise InvalidParameter(f"{pair.module}: the patches or their weighted sum hold NaN or infinity here")
    u, s, v = bases(factors)
    squares = s.square().tolist()
    kept = _kept(squares, wanted)
    options = pair.parts[0][1].options
    is_transposed = pair.layer in ("embedding", "conv1d") or bool(options["transpose"])
    A, B = (u.T, v * s) if is_transposed else (v.T, u * s)  # the singular values go into B, as in peft
    if not kept:  # nothing is added here; a file still has its pair
        A, B, kept = torch.zeros(1, len(A.T)), torch.zeros(len(B), 1), 1
    return (
        replace(
            pair.parts[0][1],
            term="lowrank",
            scale=1.0,
            fields={
                "A": _handle("A", A[:kept], (kept, *pair.shapes["A"][1:])),
                "B": _handle("B", B[:, :kept], (pair.shapes["B"][0], kept, *pair.shapes["B"][2:])),
            },
            options={**options, "transpose": is_transposed},
        ),
        squares,
        kept,
    )


def _factors(parts: Sequence[tuple[float, SiteTerm]]) -> Iterator[Factors]:
    for weight, term in parts:
        spec = terms()[term.term]
        assert spec.factors is not None  # pairs_of chose such terms
        assert spec.factor_sizes is not None
        rows, _, columns = spec.factor_sizes({name: one.shape for name, one in term.fields.items()}, term.options)
        yield Factors(*spec.factors(part(term, weight), (rows, columns)))


def _kept(squares: Sequence[float], wanted: Reduction) -> int:
    if wanted.rank is not None:
        return min(wanted.rank, len(squares))
    assert wanted.energy is not None
    left, enough = math.fsum(squares), (1 - wanted.energy) * math.fsum(squares)
    for kept, square in enumerate(squares):
        if left <= enough:
            return kept
        left -= square
    return len(squares)


def _handle(name: str, values: torch.Tensor, shape: tuple[int, ...]) -> TensorHandle:
    return TensorHandle.of_bytes(name, "F32", shape, to_bytes(values.float().contiguous()))
