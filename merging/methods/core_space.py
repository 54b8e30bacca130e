"""core_space: low-rank deltas merged in the small space that their factors span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spectral
from adapterhub.merging.ops.agreement import average_agreeing
from adapterhub.merging.ops.lowrank import Factors
from adapterhub.merging.ops.sparsify import keep_largest
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What core_space may be told."""

    inner: str = parameter("ties", "how coordinates are merged", choices=("ties", "sum"))
    density: float = parameter(0.2, "ties: share of each patch's coordinates kept", low=0, high=1, is_low_open=True)
    scale: float = parameter(1.0, "λ, the factor on the result")


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    joint = spectral.joint(deltas)
    return Factors(joint.left @ _merge(joint.cores, weights, parameters), joint.right)


def _merge(coordinates: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    if parameters.inner == "sum":
        return weighted_sum(coordinates, [parameters.scale * weight for weight in weights])
    kept = [keep_largest(one, parameters.density) for one in coordinates]
    return average_agreeing(kept, weights, scale=parameters.scale)


def core_space(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """U · g(M₁, …, M_T) · Vᵀ, M_t the delta t in the joint bases U of all columns and V of all rows, g by entries.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    no matrix is merged by g itself. With inner="sum" it is task arithmetic: nothing is lost. The result has a rank of
    at most the sum of the ranks. Source: arXiv:2509.17786 sec. 3.
    """
    return spectral.merged(
        deltas, weights, lambda f, w: on_factors(f, w, parameters), lambda d, w: _merge(d, w, parameters)
    )


SPEC = MethodSpec(
    name="core_space",
    title="Core Space",
    summary="Low-rank patches merged in the small space that they span",
    source="arXiv:2509.17786",
    function=core_space,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    on_factors=on_factors,
    is_experimental=True,
)
