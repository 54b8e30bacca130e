"""nuslerp: two models, or their deltas, on the arc between them, at a place that their weights say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spherical
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What nuslerp may be told."""

    of: str = parameter("deltas", "what lies on the arc: deltas, or the models' weights", choices=("deltas", "weights"))
    flatten: bool = parameter(True, "take a tensor as one vector, not each of its rows")
    row_wise: bool = parameter(False, "without flatten: the vectors run along the first dimension, not the last")


def nuslerp(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """The vector t = w₂/(w₁ + w₂) of the way between two, spherically interpolated; weights that cancel mean 0.5.

    deltas: two, (…) float32 or float64, not modified; the result is of their shape and dtype; float64 inside.
    Source: mergekit 0.1.5 nuslerp.
    """
    total = weights[0] + weights[1]
    t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    is_whole = parameters.of == "weights"
    a, b = (site.base + delta if is_whole else delta for delta in deltas)
    if parameters.flatten or a.dim() < 2:
        found = spherical.slerp_rows(a.reshape(-1), b.reshape(-1), t, 0).view(a.shape)
    else:
        found = spherical.slerp_rows(a, b, t, 0 if parameters.row_wise else -1)
    return found - site.base if is_whole else found


SPEC = MethodSpec(
    name="nuslerp",
    title="NuSLERP",
    summary="Two models on the arc between them, by their weights",
    source="mergekit 0.1.5",
    function=nuslerp,
    parameters=Parameters,
    laws=frozenset({"commutative", "idempotent"}),
    takes_site=True,
    inputs=(2, 2),
)
