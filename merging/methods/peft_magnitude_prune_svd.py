"""peft_magnitude_prune_svd: the largest entries of each delta summed and cut to a rank, as PEFT does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import truncation
from adapterhub.merging.ops.sparsify import keep_largest
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.ops.lowrank import Factors


@dataclass(frozen=True)
class Parameters:
    """What peft_magnitude_prune_svd may be told."""

    density: float = parameter(
        0.2, "share of each patch's entries that is kept, the largest", low=0, high=1, is_low_open=True
    )
    svd_rank: int = parameter(0, "rank of the result, 0 for the largest of the patches' own", low=0, high=65536)


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    return truncation.of_products(
        deltas, weights, lambda dense: _merge(dense, weights, parameters), parameters.svd_rank
    )


def _merge(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    return weighted_sum([keep_largest(delta, parameters.density) for delta in deltas], list(weights))


def peft_magnitude_prune_svd(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters
) -> torch.Tensor:
    """Σ wᵢ·Δ'ᵢ over the largest entries of each delta, cut to the r largest singular values.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What
    is no matrix is not truncated, and a single patch comes back whole. Source: peft 0.21.2 add_weighted_adapter,
    "magnitude_prune_svd". Differs: PEFT takes the largest rank of whole adapters, we of what each has at the site;
    its svd_clamp is left out, since it clamps by the signs that a decomposition happens to choose.
    """
    return truncation.of_dense(deltas, weights, lambda dense: _merge(dense, weights, parameters), parameters.svd_rank)


SPEC = MethodSpec(
    name="peft_magnitude_prune_svd",
    title="PEFT magnitude prune SVD",
    summary="The largest entries of each patch summed and cut to a rank",
    source="peft 0.21.2",
    function=peft_magnitude_prune_svd,
    parameters=Parameters,
    laws=frozenset({"commutative", "identity", "neutral_zero"}),
    on_factors=on_factors,
)
