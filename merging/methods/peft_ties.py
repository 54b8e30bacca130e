"""peft_ties: TIES on A and B of LoRAs each by themselves, as PEFT's combination_type 'ties'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.factorwise import SIGNS, agreed, factorwise
from adapterhub.merging.ops.sparsify import keep_largest
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.ops.lowrank import Factors, Trained


@dataclass(frozen=True)
class Parameters:
    """What peft_ties may be told."""

    density: float = parameter(
        0.2, "share of the entries of each A and of each B that is kept, the largest", low=0, high=1, is_low_open=True
    )
    majority_sign_method: str = parameter(
        "total", "whether the sum of values or that of signs elects a sign, weights apart", choices=SIGNS
    )


def peft_ties(loras: Sequence[Trained | None], weights: Sequence[float], parameters: Parameters) -> Factors:
    """TIES of the As and of the Bs: each trimmed, a sign elected for every entry, those that agree averaged.

    loras: at each site one LoRA an input, or None where it changes nothing, all of one rank; not modified. A, B and
    the result are float64. Divided by how many agree. A compatibility mode: it depends on how each product is
    divided into A and B, and mixes the A of one LoRA with the B of another. A single LoRA comes back whole. Source:
    peft 0.21.2 add_weighted_adapter, "ties", after arXiv:2306.01708. Differs: with use_rslora PEFT multiplies the
    result by √r once more, which is its mistake. At least one entry of each factor is kept, of which PEFT keeps
    none at small densities.
    """

    def prepare(factor: torch.Tensor, number: int, name: str) -> torch.Tensor:
        return keep_largest(factor, parameters.density)

    return factorwise(
        loras, weights, lambda factors, roots, name: agreed(factors, roots, parameters.majority_sign_method), prepare
    )


SPEC = MethodSpec(
    name="peft_ties",
    title="PEFT TIES",
    summary="TIES on A and B of LoRAs each, as PEFT does",
    source="peft 0.21.2",
    function=peft_ties,
    parameters=Parameters,
    laws=frozenset({"commutative", "identity"}),
    takes_trained=True,
)
