"""knots: deltas by the left directions that they share, merged entry by entry in those coordinates."""

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
    """What knots may be told."""

    inner: str = parameter("ties", "how coordinates are merged", choices=("ties", "sum"))
    density: float = parameter(0.2, "ties: share of each patch's coordinates kept", low=0, high=1, is_low_open=True)
    scale: float = parameter(1.0, "λ, the factor on the result")


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    import torch

    left = torch.cat([one.left.double() for one in deltas], 1)  # (n, R)
    basis, triangle = torch.linalg.qr(left)
    ranks = [one.left.shape[1] for one in deltas]
    pieces = torch.split(triangle, ranks, 1)
    blocks = [piece @ one.right.double() for piece, one in zip(pieces, deltas, strict=True)]  # (R, m) each
    u = spectral.of_dense(torch.cat(blocks, 1)).u
    return Factors(basis @ u, _merge([u.T @ block for block in blocks], weights, parameters))


def _merge(coordinates: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    if parameters.inner == "sum":
        return weighted_sum(coordinates, [parameters.scale * weight for weight in weights])
    kept = [keep_largest(one, parameters.density) for one in coordinates]
    return average_agreeing(kept, weights, scale=parameters.scale)


def knots(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """U · g(S·V₁ᵀ, …, S·V_Tᵀ) of the decomposition U S [V₁ᵀ … V_Tᵀ] of the deltas side by side, g a merge by entries.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    no matrix is merged by g itself. With inner="sum" it is task arithmetic. Source: arXiv:2410.19735 sec. 4, alg. 1.
    """
    return spectral.merged(
        deltas, weights, lambda f, w: on_factors(f, w, parameters), lambda d, w: _merge(d, w, parameters)
    )


SPEC = MethodSpec(
    name="knots",
    title="KnOTS",
    summary="Patches merged in the coordinates of the directions they share",
    source="arXiv:2410.19735",
    function=knots,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    on_factors=on_factors,
    is_experimental=True,
)
