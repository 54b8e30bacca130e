"""peft_linear: A and B of LoRAs summed each by themselves, as PEFT's combination_type 'linear'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.merging.ops.factorwise import factorwise, summed
from adapterhub.merging.registry import MethodSpec, NoParameters

if TYPE_CHECKING:
    from adapterhub.merging.ops.lowrank import Factors, Trained


def peft_linear(loras: Sequence[Trained | None], weights: Sequence[float], parameters: NoParameters) -> Factors:
    """Σ √aᵢ·Bᵢ @ Σ √aᵢ·Aᵢ, aᵢ the weight times the scaling of LoRA i.

    loras: at each site one LoRA an input, or None where it changes nothing, all of one rank; not modified. A, B and
    the result are float64. A compatibility mode: it depends on how each product is divided into A and B, and mixes
    the A of one LoRA with the B of another. A single LoRA comes back whole. Source: peft 0.21.2
    add_weighted_adapter, "linear". Differs: with use_rslora PEFT multiplies the result by √r once more, which is
    its mistake.
    """
    return factorwise(loras, weights, summed)


SPEC = MethodSpec(
    name="peft_linear",
    title="PEFT linear",
    summary="A and B of LoRAs each summed, as PEFT does; no sum of the patches",
    source="peft 0.21.2",
    function=peft_linear,
    laws=frozenset({"commutative", "identity"}),
    takes_trained=True,
)
