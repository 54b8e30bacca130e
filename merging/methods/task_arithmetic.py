"""task_arithmetic: the weighted sum of the deltas, λ · Σ wᵢ·Δᵢ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import normalised, weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What task_arithmetic may be told."""

    scale: float = parameter(1.0, "λ, the factor on the whole sum")
    normalize: bool = parameter(False, "divide by the sum of the weights")


def coefficients(weights: Sequence[float], parameters: Parameters) -> list[float]:
    """The factor on each delta. Raises InvalidParameter for weights that add up to 0 under normalize."""
    shares = normalised("task_arithmetic", weights) if parameters.normalize else weights
    return [parameters.scale * share for share in shares]


def task_arithmetic(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """The weighted sum of task vectors; a negative weight takes a task away.

    deltas: each of one shape and dtype (float32, or float64), at least one; not modified; the result has both.
    Raises InvalidParameter when normalize meets weights that add up to 0.
    Source: arXiv:2212.04089 sec. 2. Differs: mergekit skips the division by a zero sum, we refuse it.
    """
    return weighted_sum(deltas, coefficients(weights, parameters))


SPEC = MethodSpec(
    name="task_arithmetic",
    title="Task arithmetic",
    summary="Weighted sum of the patches",
    source="arXiv:2212.04089",
    function=task_arithmetic,
    parameters=Parameters,
    laws=frozenset({"commutative"}),
    laws_at={"identity": {"scale": 1.0}, "neutral_zero": {"normalize": False}},
    coefficients=coefficients,
)
