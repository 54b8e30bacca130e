"""nearswap: take over of one model what is near the base, and less the further it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What nearswap may be told."""

    t: float = parameter(0.001, "difference up to which the model's entry replaces the base's", low=0)


def nearswap(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Δ · min(1, t / |Δ|): differences up to t whole, larger ones cut to t.

    deltas: one, (…) float32 or float64, not modified; the result is of its shape and dtype. A difference below 1e-6
    counts as that. Source: mergekit 0.1.5 nearswap, after alchemonaut/QuartetAnemoi-70B-t0.0001.
    """
    delta = deltas[0]
    return delta * (parameters.t / delta.abs().clamp_min(1e-6)).clamp(0.0, 1.0)


SPEC = MethodSpec(
    name="nearswap",
    title="NearSwap",
    summary="One model's entries where they are near the base's",
    source="mergekit 0.1.5",
    function=nearswap,
    parameters=Parameters,
    inputs=(1, 1),
    takes_weights=False,
)
