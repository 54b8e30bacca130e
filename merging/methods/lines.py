"""lines: the weighted sum of the deltas, scaled up linearly with depth."""

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
    """What lines may be told."""

    alpha: float = parameter(0.5, "the factor on the first layer, and on what is in no layer")
    beta: float = parameter(0.5, "what the last layer has more than the first")


def lines(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """(α + β·l/(L - 1)) · Σ wᵢ·Δᵢ for layer l of L; α alone outside of layers.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. α 1 and β 0 is task
    arithmetic. Source: arXiv:2410.17146 sec. 4, eq. 3.
    """
    factor = parameters.alpha + parameters.beta * (site.depth or 0.0)
    return weighted_sum(deltas, [factor * weight for weight in weights])


SPEC = MethodSpec(
    name="lines",
    title="LiNeS",
    summary="The sum of the patches, deeper layers more of it",
    source="arXiv:2410.17146",
    function=lines,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"alpha": 1.0, "beta": 0.0}},
    takes_site=True,
    is_experimental=True,
)
