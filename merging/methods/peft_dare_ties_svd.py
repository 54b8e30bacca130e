"""peft_dare_ties_svd: DARE and TIES of the deltas, cut to a rank, as PEFT's combination_type 'dare_ties_svd'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import truncation
from adapterhub.merging.ops.draws import keep_each_random
from adapterhub.merging.ops.factorwise import SIGNS, agreed
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.ops.lowrank import Factors
    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What peft_dare_ties_svd may be told."""

    density: float = parameter(
        0.5, "share of each patch's entries that is kept, at random", low=0, high=1, is_low_open=True
    )
    seed: int = parameter(0, "of the random numbers, which belong to a patch and tensor", low=0, high=2**63 - 1)
    majority_sign_method: str = parameter(
        "total", "whether the sum of values or that of signs elects a sign, weights apart", choices=SIGNS
    )
    svd_rank: int = parameter(0, "rank of the result, 0 for the largest of the patches' own", low=0, high=65536)


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters, site: MergeSite) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    return truncation.of_products(
        deltas, weights, lambda dense: _merge(dense, weights, parameters, site), parameters.svd_rank
    )


def _merge(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    kept = keep_each_random(deltas, site, parameters.density, "inverse", parameters.seed)
    return agreed(kept, weights, parameters.majority_sign_method)


def peft_dare_ties_svd(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """DARE of the deltas, those of the elected sign averaged, cut to the r largest singular values.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside.
    Masks belong to seed, patch and tensor. What is no matrix is not truncated, and a single patch comes back whole.
    Source: peft 0.21.2 add_weighted_adapter, "dare_ties_svd", after arXiv:2311.03099. Differs: PEFT takes the
    largest rank of whole adapters, we of what each has at the site; its svd_clamp is left out, since it clamps by
    the signs that a decomposition happens to choose.
    """
    return truncation.of_dense(
        deltas, weights, lambda dense: _merge(dense, weights, parameters, site), parameters.svd_rank
    )


SPEC = MethodSpec(
    name="peft_dare_ties_svd",
    title="PEFT DARE-TIES-SVD",
    summary="Random entries kept and rescaled, those of the elected sign averaged, and cut to a rank",
    source="peft 0.21.2",
    function=peft_dare_ties_svd,
    parameters=Parameters,
    laws=frozenset({"commutative", "identity", "neutral_zero"}),
    takes_site=True,
    on_factors=on_factors,
)
