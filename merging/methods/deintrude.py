"""deintrude: directions that a patch brings into a matrix and the base knows nothing like are scaled down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What deintrude may be told."""

    eps: float = parameter(0.5, "the cosine to every direction of the base below which one intrudes", low=0, high=1)
    scale: float = parameter(0.0, "what intruders are multiplied by: 0 takes them away, 1 leaves them")
    top: int = parameter(10, "how many of the largest directions are looked at; 0 for all", low=0)


def deintrude(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """Δ - (1 - λ) · Σ σⱼ uⱼ vⱼᵀ over intruders: left singular vectors uⱼ of W + Δ with max |uⱼ · uᵢ(W)| < ε for all i.

    deltas: one, (…) float32 or float64, not modified; the result is of its shape and dtype; two decompositions in
    float64 inside. What is no matrix stays as it is. The report has the number of `intruders` and the norm of what was
    taken away, `removed_norm`. Source: arXiv:2410.21228 sec. 3 alg. 1, sec. 5 (scaling intruder dimensions).
    """
    import torch

    delta = weighted_sum(deltas, list(weights))
    if delta.dim() < 2 or not delta.numel():
        return delta
    base = site.base.double().flatten(1)
    u, s, vh = torch.linalg.svd(base + delta.double().flatten(1), full_matrices=False)
    known = torch.linalg.svd(base, full_matrices=False).U
    looked_at = slice(parameters.top or None)
    is_intruder = (u[:, looked_at].T @ known).abs().amax(1) < parameters.eps
    strange = u[:, looked_at][:, is_intruder] * s[looked_at][is_intruder]
    removed = (1 - parameters.scale) * (strange @ vh[looked_at][is_intruder])
    site.told.update(intruders=float(is_intruder.sum()), removed_norm=float(removed.norm()))
    damped: torch.Tensor = delta.double() - removed.view(delta.shape)
    return damped.to(delta.dtype)


SPEC = MethodSpec(
    name="deintrude",
    title="Deintrude",
    summary="Directions of a patch that the base knows nothing like, scaled down",
    source="arXiv:2410.21228",
    function=deintrude,
    parameters=Parameters,
    laws_at={"identity": {"scale": 1.0}},
    inputs=(1, 1),
    takes_site=True,
    is_experimental=True,
)
