"""consensus: the sum of the deltas, of entries that matter to enough of them."""

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
    """What consensus may be told."""

    needed: int = parameter(2, "how many patches an entry has to matter to", low=0, high=1000)
    tall: float = parameter(0.6, "λ of the masks: above it fewer entries matter to a patch", low=0)
    scale: float = parameter(1.0, "α, the factor on the result")


def consensus(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """α · τ where at least `needed` masks |Δᵢ| > λ·|τ - Δᵢ| are set, τ = Σ wᵢ·Δᵢ.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. needed 0 is task
    arithmetic, more than there are patches gives the base. Source: arXiv:2405.07813 sec. 4 (TALL masks, Consensus).
    """
    import torch

    total = weighted_sum(deltas, list(weights))
    votes = torch.zeros_like(total)
    for delta in deltas:
        votes += tall_mask(delta, total, parameters.tall).to(total.dtype)
    return torch.where(votes >= parameters.needed, total * parameters.scale, torch.zeros_like(total))


SPEC = MethodSpec(
    name="consensus",
    title="Consensus",
    summary="The sum of the patches, of entries that matter to several",
    source="arXiv:2405.07813",
    function=consensus,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    is_experimental=True,
)
