"""linear: the weighted mean of the deltas, Σ wᵢ·Δᵢ / Σ wᵢ."""

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
    """What linear may be told."""

    normalize: bool = parameter(True, "divide by the sum of the weights")


def coefficients(weights: Sequence[float], parameters: Parameters) -> list[float]:
    """The factor on each delta. Raises InvalidParameter for weights that add up to 0 under normalize."""
    return normalised("linear", weights) if parameters.normalize else list(weights)


def linear(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """The weighted mean of task vectors, or their weighted sum without normalize.

    deltas: each of one shape and dtype (float32, or float64), at least one; not modified; the result has both.
    On full models the mean equals averaging the weights themselves, since W + Σ wᵢ(Mᵢ - W)/Σ wᵢ = Σ wᵢMᵢ/Σ wᵢ.
    Raises InvalidParameter when normalize meets weights that add up to 0.
    Source: arXiv:2203.05482 (model soups). Differs: without normalize mergekit scales the base too, we never do.
    """
    return weighted_sum(deltas, coefficients(weights, parameters))


SPEC = MethodSpec(
    name="linear",
    title="Linear",
    summary="Weighted mean of the patches",
    source="arXiv:2203.05482",
    function=linear,
    parameters=Parameters,
    laws=frozenset({"identity", "commutative"}),
    laws_at={"idempotent": {"normalize": True}},
    coefficients=coefficients,
)
