"""tall: the model of one task, by its mask of the sum of all deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.ops.task_masks import tall_mask
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What tall may be told."""

    task: int = parameter(1, "whose model is made: the first patch's is 1", low=1, high=1000)
    tall: float = parameter(
        0.6, "λ of the mask: above it fewer entries are the task's; the paper has 0.2 to 0.6", low=0
    )


def tall(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """τ where |Δₜ| > λ·|τ - Δₜ|, else 0, τ = Σ wᵢ·Δᵢ: what of the sum is localised as task t's.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. λ 0 keeps every entry
    that the task changes. Source: arXiv:2405.07813 sec. 4.1 (TALL masks).
    """
    import torch

    total = weighted_sum(deltas, list(weights))
    return torch.where(tall_mask(deltas[parameters.task - 1], total, parameters.tall), total, torch.zeros_like(total))


SPEC = MethodSpec(
    name="tall",
    title="TALL masks",
    summary="One patch's model, as a mask of the sum of all patches",
    source="arXiv:2405.07813",
    function=tall,
    parameters=Parameters,
    laws=frozenset({"identity", "neutral_zero"}),
    is_experimental=True,
    needed=lambda parameters: int(parameters.task),
)
