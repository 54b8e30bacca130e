"""peft_cat: the exact weighted sum of LoRAs, as PEFT's combination_type 'cat'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, NoParameters

if TYPE_CHECKING:
    import torch


def coefficients(weights: Sequence[float], parameters: NoParameters) -> list[float]:
    """The weights themselves."""
    return list(weights)


def peft_cat(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: NoParameters) -> torch.Tensor:
    """Σ wᵢ·Δᵢ, exactly: the A of all LoRAs on top of each other, the B side by side.

    deltas: each of one shape and dtype (float32, or float64), at least one; not modified; the result has both. The same
    as task arithmetic; a merge of LoRAs alone stays a LoRA, whose rank is the sum of the ranks.
    Source: peft 0.21.2 add_weighted_adapter, "cat". Differs: with use_rslora PEFT multiplies the result by √r once
    more, which is its mistake.
    """
    return weighted_sum(deltas, list(weights))


SPEC = MethodSpec(
    name="peft_cat",
    title="PEFT cat",
    summary="The exact weighted sum of the patches, under PEFT's name",
    source="peft 0.21.2",
    function=peft_cat,
    laws=frozenset({"identity", "commutative", "neutral_zero"}),
    coefficients=coefficients,
)
