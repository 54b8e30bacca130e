"""tsv_m: the largest singular directions of each delta, made orthogonal to those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spectral
from adapterhub.merging.ops.lowrank import Factors
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What tsv_m may be told."""

    scale: float = parameter(1.0, "α, the factor on the result")


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    import torch

    kept = max(1, min(deltas[0].left.shape[0], deltas[0].right.shape[1]) // len(deltas))
    triplets = [spectral.of_factors(one).head(kept) for one in deltas]
    left = spectral.orthogonalised(torch.cat([one.u for one in triplets], 1))
    right = spectral.orthogonalised(torch.cat([one.v for one in triplets], 1))
    sizes = torch.cat([one.s * weight for one, weight in zip(triplets, weights, strict=True)])
    return Factors(left * sizes * parameters.scale, right.T)


def tsv_m(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """α · U' Σ V'ᵀ: each delta's floor(min(n, m) / T) largest singular triplets, their vectors orthogonalised jointly.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    no matrix is averaged. Triplets of value zero are dropped, which the published code keeps: the vectors that a
    decomposition gives them are arbitrary. Weights scale singular values. Source: arXiv:2412.00081 sec. 4.3, alg. 1.
    """

    def mean(given: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        return weighted_sum(given, [parameters.scale * factor / len(given) for factor in factors])

    return spectral.merged(deltas, weights, lambda f, w: on_factors(f, w, parameters), mean)


SPEC = MethodSpec(
    name="tsv_m",
    title="TSV-Merge",
    summary="Singular directions of each patch, made orthogonal to the others'",
    source="arXiv:2412.00081",
    function=tsv_m,
    parameters=Parameters,
    laws=frozenset({"commutative"}),
    laws_at={"identity": {"scale": 1.0}},
    on_factors=on_factors,
    is_experimental=True,
)
