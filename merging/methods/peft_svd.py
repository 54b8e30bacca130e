"""peft_svd: the sum of the deltas, cut to a rank, as PEFT's combination_type 'svd'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spectral, truncation
from adapterhub.merging.ops.lowrank import Factors, concatenate
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What peft_svd may be told."""

    svd_rank: int = parameter(0, "rank of the result, 0 for the largest of the patches' own", low=0, high=65536)


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m), without forming any; float64."""
    parts = [
        Factors(one.left.double() * weight, one.right.double()) for one, weight in zip(deltas, weights, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    rank = parameters.svd_rank or max(one.left.shape[1] for one in deltas)
    return spectral.of_factors(concatenate(parts)).head(rank).factors()


def peft_svd(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Σ wᵢ·Δᵢ, cut to the r largest singular values: exact where r is no less than the sum's rank.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What
    is no matrix is not truncated, and a single patch comes back whole. Source: peft 0.21.2 add_weighted_adapter,
    "svd". Differs: PEFT takes the largest rank of whole adapters, we of what each has at the site; its svd_clamp is
    left out, since it clamps by the signs that a decomposition happens to choose.
    """
    return truncation.of_dense(deltas, weights, lambda dense: weighted_sum(dense, list(weights)), parameters.svd_rank)


SPEC = MethodSpec(
    name="peft_svd",
    title="PEFT SVD",
    summary="The sum of the patches at the rank of the largest: exact if its rank is no more",
    source="peft 0.21.2",
    function=peft_svd,
    parameters=Parameters,
    laws=frozenset({"commutative", "identity", "neutral_zero"}),
    on_factors=on_factors,
)
