"""iso_c: the sum of the deltas with all its singular values made equal to their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spectral
from adapterhub.merging.ops.lowrank import Factors, concatenate
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What iso_c may be told."""

    scale: float = parameter(1.0, "α, the factor on the result")


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    scaled = [Factors(one.left * weight, one.right) for one, weight in zip(deltas, weights, strict=True)]
    found = spectral.of_factors(concatenate(scaled))
    return Factors(found.u * (parameters.scale * found.s.mean() if found.s.numel() else 0.0), found.v.T)


def iso_c(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """α · mean(Σ) · U Vᵀ of the singular value decomposition of Σ wᵢ·Δᵢ.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    no matrix is averaged. Only directions that the sum has are made equal: on the null space of low-rank patches the
    published code puts arbitrary ones. Source: arXiv:2502.04959 sec. 4.1, alg. 1.
    """

    def mean(given: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        return weighted_sum(given, [factor / len(given) for factor in factors])

    return spectral.merged(deltas, weights, lambda f, w: on_factors(f, w, parameters), mean)


SPEC = MethodSpec(
    name="iso_c",
    title="Iso-C",
    summary="The sum of the patches, all its directions of one size",
    source="arXiv:2502.04959",
    function=iso_c,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    on_factors=on_factors,
    is_experimental=True,
)
