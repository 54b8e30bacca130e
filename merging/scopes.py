"""Trims whose threshold is that of a whole patch: found in passes over all tensors, before any of them is merged.

A method says how many entries of a patch it wants as its largest (`MethodSpec.global_counts`). The entries are those of
the tensors that any of its inputs changes; all that equal the threshold stay, so the order of tensors does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.effects import read
from adapterhub.merging.fold import StepPieces
from adapterhub.merging.methods import methods
from adapterhub.merging.ops.selection import Threshold, thresholds
from adapterhub.merging.ops.tensors import accumulator, as_matrix, is_floating
from adapterhub.merging.ops.tiles import tiles
from adapterhub.merging.steps import Addend, MethodDelta, OutputTensor, handles_of

if TYPE_CHECKING:
    from adapterhub.merging.registry import Piece

_ALL, _NONE = Threshold(0.0, 0, is_all=True), Threshold(float("inf"), 0, is_all=True)


def with_limits(outputs: Sequence[OutputTensor], check: Callable[[], None] = lambda: None) -> Sequence[OutputTensor]:
    """The outputs, the steps of methods with the scope "global" now knowing the thresholds of their whole patches.

    check is called between tiles and may raise.
    """
    groups: dict[str, list[tuple[OutputTensor, MethodDelta]]] = {}
    for output in outputs:
        for step in _steps(output.addends):
            groups.setdefault(_key(step), []).append((output, step))
    limits = {key: _limits(group, check) for key, group in groups.items()}
    if not any(limits.values()):
        return outputs
    return [replace(output, addends=_limited(output.addends, limits)) for output in outputs]


def _steps(addends: Sequence[Addend]) -> Iterator[MethodDelta]:
    """The steps with a scope of their own; those inside another step see one tensor, as it does."""
    for addend in addends:
        if isinstance(addend.delta, MethodDelta) and methods()[addend.delta.method].global_counts is not None:
            yield addend.delta


def _key(step: MethodDelta) -> str:
    return repr((step.method, step.parameters, step.weights, step.digests))


def _limits(
    group: Sequence[tuple[OutputTensor, MethodDelta]], check: Callable[[], None]
) -> tuple[tuple[Threshold, ...], ...]:
    """One tuple an input, one threshold for each count that the method wants; () where it looks at tensors."""
    step = group[0][1]
    count_of = methods()[step.method].global_counts
    assert count_of is not None
    numel = sum(prod(output.shape) for output, _ in group)
    counts = count_of(step.parameters, numel)
    inputs = range(len(step.inputs)) if counts else ()
    wanted = [(number, count) for number in inputs for count in counts if 0 < count < numel]
    found = dict(zip(wanted, thresholds(_Together(group, check), wanted), strict=True)) if wanted else {}
    fixed = {count: _NONE if count == 0 else _ALL for count in counts}
    return tuple(tuple(found.get((number, count), fixed[count]) for count in counts) for number in inputs)


def _limited(addends: Sequence[Addend], limits: dict[str, tuple[tuple[Threshold, ...], ...]]) -> tuple[Addend, ...]:
    return tuple(
        replace(one, delta=replace(one.delta, limits=limits.get(_key(one.delta), ())))
        if isinstance(one.delta, MethodDelta)
        else one
        for one in addends
    )


class _Together:
    """The pieces of one step at every tensor, one tensor after the other."""

    def __init__(self, group: Sequence[tuple[OutputTensor, MethodDelta]], check: Callable[[], None]) -> None:
        self._group, self._check = group, check

    def __iter__(self) -> Iterator[Piece]:
        for output, step in self._group:
            W = read(output.base)
            wide = accumulator(output.base.dtype if is_floating(output.base.dtype) else "F32")
            for piece in StepPieces(output.name, step, W, wide, partial(tiles, as_matrix(W)), {}):
                self._check()
                yield piece
            for handle in (output.base, *handles_of(output.addends)):
                handle.release()
