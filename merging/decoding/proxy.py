"""proxy: a large model steered by what small experts have more than a small model that they were tuned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import OperatorSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What proxy may be told."""

    alpha: float = parameter(1.0, "α, the factor on what the experts have more")


def proxy(logits: torch.Tensor, weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """z_large + α · Σ wᵢ·(z_expertᵢ - z_anti).

    logits: (2 + n, vocabulary), of large, anti and n experts. At α = 0, and where each expert is anti, the large
    model's logits. Source: arXiv:2401.08565 sec. 2, which has one expert; several with weights as arXiv:2105.03023
    (DExperts), whose anti-expert need not be their base.
    """
    large, anti, experts = logits[0], logits[1], logits[2:]
    shift = sum(weight * (expert - anti) for weight, expert in zip(weights, experts, strict=True))
    composed: torch.Tensor = large + parameters.alpha * shift
    return composed


SPEC = OperatorSpec(
    name="proxy",
    title="Proxy-tuning",
    summary="Steer a large model by what small tuned ones have more than their base",
    source="arXiv:2401.08565",
    function=proxy,
    first="large",
    named=("anti",),
    others="expert",
    takes_weights=True,
    parameters=Parameters,
)
