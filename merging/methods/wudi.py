"""wudi: the sum that interferes least with what each delta does to the inputs it was made by; in closed form."""

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
    """What wudi may be told."""

    scale: float = parameter(1.0, "λ, the factor on the result")


def on_factors(deltas: Sequence[Factors], weights: Sequence[float], parameters: Parameters) -> Factors:
    """The same of deltas as products left (n, r) · right (r, m); float64."""
    import torch

    right = spectral.of_dense(torch.cat([one.right.double() for one in deltas], 0)).v.T  # (Q, m)
    above = torch.zeros(deltas[0].left.shape[0], right.shape[0], dtype=torch.float64, device=right.device)
    below = torch.zeros(right.shape[0], right.shape[0], dtype=torch.float64, device=right.device)
    for one in deltas:
        delta = one.left.double() @ (one.right.double() @ right.T)  # (n, Q)
        size = delta.square().sum()
        if size > 0:
            gram = delta.T @ delta / size
            above += delta @ gram
            below += gram
    return Factors(parameters.scale * above @ torch.linalg.pinv(below, rtol=1e-10, hermitian=True), right)


def wudi(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """λ · (Σ Δᵢ Kᵢ)(Σ Kᵢ)⁺ with Kᵢ = Δᵢᵀ Δᵢ / ‖Δᵢ‖²: the minimum of Σ ‖(M - Δᵢ) Δᵢᵀ‖² / ‖Δᵢ‖² over M.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    no matrix is averaged. Source: arXiv:2503.08099 eq. 13. Differs: the paper takes a few hundred steps of Adam towards
    that minimum; the objective is quadratic, and this is its solution.
    """

    def mean(given: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        return weighted_sum(given, [parameters.scale * factor / len(given) for factor in factors])

    return spectral.merged(deltas, weights, lambda f, w: on_factors(f, w, parameters), mean)


SPEC = MethodSpec(
    name="wudi",
    title="WUDI",
    summary="The sum that interferes least with each patch's own inputs",
    source="arXiv:2503.08099",
    function=wudi,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"scale": 1.0}, "idempotent": {"scale": 1.0}},
    takes_weights=False,
    on_factors=on_factors,
    is_experimental=True,
)
