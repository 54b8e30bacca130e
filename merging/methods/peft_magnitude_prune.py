"""peft_magnitude_prune: the largest entries of A and B of LoRAs kept, then summed, as PEFT's 'magnitude_prune'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.factorwise import factorwise, summed
from adapterhub.merging.ops.sparsify import keep_largest
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.ops.lowrank import Factors, Trained


@dataclass(frozen=True)
class Parameters:
    """What peft_magnitude_prune may be told."""

    density: float = parameter(
        0.2, "share of the entries of each A and of each B that is kept, the largest", low=0, high=1, is_low_open=True
    )


def peft_magnitude_prune(loras: Sequence[Trained | None], weights: Sequence[float], parameters: Parameters) -> Factors:
    """Σ √aᵢ·B'ᵢ @ Σ √aᵢ·A'ᵢ, the largest entries of each A and B kept.

    loras: at each site one LoRA an input, or None where it changes nothing, all of one rank; not modified. A, B and
    the result are float64. A compatibility mode: it depends on how each product is divided into A and B, and mixes
    the A of one LoRA with the B of another. A single LoRA comes back whole. Source: peft 0.21.2
    add_weighted_adapter, "magnitude_prune". Differs: with use_rslora PEFT multiplies the result by √r once more,
    which is its mistake. At least one entry of each factor is kept, of which PEFT keeps none at small densities.
    """

    def prepare(factor: torch.Tensor, number: int, name: str) -> torch.Tensor:
        return keep_largest(factor, parameters.density)

    return factorwise(loras, weights, summed, prepare)


SPEC = MethodSpec(
    name="peft_magnitude_prune",
    title="PEFT magnitude prune",
    summary="The largest entries of A and B kept, then summed, as PEFT does",
    source="peft 0.21.2",
    function=peft_magnitude_prune,
    parameters=Parameters,
    laws=frozenset({"commutative", "identity"}),
    takes_trained=True,
)
