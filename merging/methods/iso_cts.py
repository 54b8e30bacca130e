"""iso_cts: directions that the deltas share and those that each has alone, orthogonal and of one size."""

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
    """What iso_cts may be told."""

    common: float = parameter(0.8, "share of the directions that are common ones", low=0, high=1)
    scale: float = parameter(1.0, "α, the factor on the result")


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    import torch

    scaled = [Factors(one.left.double() * w, one.right.double()) for one, w in zip(deltas, weights, strict=True)]
    whole = spectral.of_factors(concatenate(scaled))
    count = whole.s.numel()
    own = (count - int(parameters.common * count)) // len(deltas)
    shared = whole.head(count - own * len(deltas))
    parts = [_alone(one, shared).head(own) for one in scaled]
    left = spectral.orthogonalised(torch.cat([*(one.u for one in parts), shared.u], 1))
    right = spectral.orthogonalised(torch.cat([*(one.v for one in parts), shared.v], 1))
    sizes = torch.cat([*(one.s for one in parts), shared.s])
    return Factors(left * (parameters.scale * sizes.mean() if sizes.numel() else 0.0), right.T)


def _alone(delta: Factors, shared: spectral.Triplets) -> spectral.Triplets:
    """The triplets of a delta outside of the common left directions."""
    return spectral.of_factors(Factors(delta.left - shared.u @ (shared.u.T @ delta.left), delta.right))


def iso_cts(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """α · mean(Σ) · U Vᵀ of the sum's largest directions and, of each delta, those outside of their span.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    no matrix is averaged. common 1 is iso_c. Shares are of the directions that the sum has, not of min(n, m).
    Source: arXiv:2502.04959 sec. 4.2, alg. 2.
    """

    def mean(given: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        return weighted_sum(given, [factor / len(given) for factor in factors])

    return spectral.merged(deltas, weights, lambda f, w: on_factors(f, w, parameters), mean)


SPEC = MethodSpec(
    name="iso_cts",
    title="Iso-CTS",
    summary="Common and own directions of the patches, orthogonal and of one size",
    source="arXiv:2502.04959",
    function=iso_cts,
    parameters=Parameters,
    laws=frozenset({"commutative"}),
    on_factors=on_factors,
    is_experimental=True,
)
