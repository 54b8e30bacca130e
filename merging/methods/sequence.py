"""sequence: one patch after another, each acting on what those before it left: W + wₙ·(fₙ(W') - W') + ... ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, NoParameters

if TYPE_CHECKING:
    import torch


def sequence(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: NoParameters) -> torch.Tensor:
    """The change that all steps make together, Σ wᵢ·Δᵢ, where Δᵢ is step i's change of what the steps before it left.

    deltas: each of one shape and dtype (float32, or float64), at least one, computed in order; not modified; the result
    has both. For additive patches it is their weighted sum; what multiplies weights (IA³, OFT, DoRA) needs the order.
    Source: the declared sequence of the fold order, docs/patch-format.md; PEFT merges adapters one after another so.
    """
    return weighted_sum(deltas, list(weights))


SPEC = MethodSpec(
    name="sequence",
    title="Sequence",
    summary="One patch after another, each on the result of those before",
    source="the declared order of the fold",
    function=sequence,
    laws=frozenset({"identity", "neutral_zero"}),
    is_sequential=True,
)
