"""peft_dare_ties: DARE and TIES on A and B of LoRAs each by themselves, as PEFT's combination_type 'dare_ties'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.draws import keep_random
from adapterhub.merging.ops.factorwise import SIGNS, agreed, factorwise
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.ops.lowrank import Factors, Trained
    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What peft_dare_ties may be told."""

    density: float = parameter(
        0.5, "share of the entries of each A and of each B that is kept, at random", low=0, high=1, is_low_open=True
    )
    seed: int = parameter(0, "of the random numbers, which belong to a patch and tensor", low=0, high=2**63 - 1)
    majority_sign_method: str = parameter(
        "total", "whether the sum of values or that of signs elects a sign, weights apart", choices=SIGNS
    )


def peft_dare_ties(
    loras: Sequence[Trained | None], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> Factors:
    """Random entries of each A and B kept and divided by the density, those of the elected sign averaged.

    loras: at each site one LoRA an input, or None where it changes nothing, all of one rank; not modified. A, B and
    the result are float64. Divided by how many agree. A compatibility mode: it depends on how each product is
    divided into A and B, and mixes the A of one LoRA with the B of another. A single LoRA comes back whole. Source:
    peft 0.21.2 add_weighted_adapter, "dare_ties", after arXiv:2311.03099. Differs: with use_rslora PEFT multiplies
    the result by √r once more, which is its mistake. Masks belong to seed, patch and tensor.
    """

    def prepare(factor: torch.Tensor, number: int, name: str) -> torch.Tensor:
        tensor = f"{site.name}.lora_{name}"
        return keep_random(factor, parameters.density, "inverse", parameters.seed, site.digests[number], tensor)

    return factorwise(
        loras, weights, lambda factors, roots, name: agreed(factors, roots, parameters.majority_sign_method), prepare
    )


SPEC = MethodSpec(
    name="peft_dare_ties",
    title="PEFT DARE-TIES",
    summary="Random entries of A and B kept and rescaled, those of the elected sign averaged, as PEFT does",
    source="peft 0.21.2",
    function=peft_dare_ties,
    parameters=Parameters,
    laws=frozenset({"commutative", "identity"}),
    takes_site=True,
    takes_trained=True,
)
