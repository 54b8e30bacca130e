"""What is to be computed for each tensor of a result: frozen values over lazy handles. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.statistics import SiteStatistics

if TYPE_CHECKING:
    from adapterhub.merging.ops.selection import Threshold


@dataclass(frozen=True)
class TermDelta:
    """What one term of a patch does to its site. digest: the patch's, which orders sums and keys random numbers."""

    term: SiteTerm
    digest: str


@dataclass(frozen=True)
class ModelDelta:
    """The difference of two models at one tensor: tuned - base. Both handles have the output's shape."""

    tuned: TensorHandle
    base: TensorHandle


@dataclass(frozen=True)
class MethodDelta:
    """The delta that a merge method makes of others.

    inputs: for each input the addends whose sum is its delta at this tensor, () for none: a zero delta. weights: one an
    input. parameters: an instance of the method's dataclass. digests: what each input is made of, one an input. depth:
    l / (L - 1) of layer l of L, None outside layers. statistics: one an input, for methods that take them.
    limits: as in `registry.Pieces`.
    """

    method: str
    parameters: Any
    weights: tuple[float, ...]
    inputs: tuple[tuple[Addend, ...], ...]
    digests: tuple[str, ...] = ()
    depth: float | None = None
    statistics: tuple[SiteStatistics, ...] = ()
    limits: tuple[tuple[Threshold, ...], ...] = ()


Delta: TypeAlias = TermDelta | ModelDelta | MethodDelta


@dataclass(frozen=True)
class Addend:
    """weight times a delta; the term's own scale comes on top."""

    weight: float
    delta: Delta


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result: the base's values plus the addends, in the given order, rounded once to dtype.

    base: the tensor to start from, under whatever name it is stored. Without addends and in the base's dtype its bytes
    are copied. quantisations: how the bases were stored that its patches were trained on, where this base is not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorHandle
    addends: tuple[Addend, ...] = ()
    quantisations: tuple[str, ...] = ()

    @property
    def is_copy(self) -> bool:
        return not self.addends and self.dtype == self.base.dtype


def handles_of(addends: Sequence[Addend]) -> Iterator[TensorHandle]:
    """Every stored tensor that the addends are made of."""
    for addend in addends:
        match addend.delta:
            case TermDelta(term=term):
                yield from term.fields.values()
            case ModelDelta(tuned=tuned, base=base):
                yield from (tuned, base)
            case MethodDelta(inputs=inputs):
                for one in inputs:
                    yield from handles_of(one)
