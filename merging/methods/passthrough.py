"""passthrough: one model as it is, its tensors times a factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What passthrough may be told."""

    scale: float = parameter(1.0, "the factor on the model's tensors")


def passthrough(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """scale · (W + Δ) - W: the model itself, whatever the base.

    deltas: one, (…) float32 or float64, not modified; the result is of its shape and dtype. For scale 1 it is Δ.
    Source: mergekit 0.1.5 passthrough.
    """
    if parameters.scale == 1.0:
        return deltas[0].clone()
    return (site.base + deltas[0]) * parameters.scale - site.base


SPEC = MethodSpec(
    name="passthrough",
    title="Passthrough",
    summary="One model as it is, times a factor",
    source="mergekit 0.1.5",
    function=passthrough,
    parameters=Parameters,
    laws_at={"identity": {"scale": 1.0}},
    takes_site=True,
    inputs=(1, 1),
    takes_weights=False,
    moves_base=True,
)
