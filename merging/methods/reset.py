"""reset: half of what a patch changed goes back to the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.halves import half_of_each_category, half_of_the_layers, half_of_the_tensors
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

_HALVES: dict[str, Callable[..., frozenset[str]]] = {
    "category": half_of_each_category,
    "layer": half_of_the_layers,
    "tensor": half_of_the_tensors,
}


@dataclass(frozen=True)
class Parameters:
    """What reset may be told."""

    half: str = parameter(
        "drawn", "which half goes back: that which the seed draws, or the other", choices=("drawn", "other")
    )
    by: str = parameter(
        "category",
        "what is halved: the modules of every category of every layer, the layers, or all tensors",
        choices=tuple(_HALVES),
    )
    seed: int = parameter(0, "of the draw", low=0, high=2**63 - 1)


def acts_on(names: Sequence[str], parameters: Parameters) -> frozenset[str]:
    """The names of the tensors that stay as the patch has them. What no half is drawn from stays with the drawn one."""
    drawn = _HALVES[parameters.by](names, seed=parameters.seed)
    return drawn if parameters.half == "other" else frozenset(names) - drawn


def reset(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """w·Δ in the tensors that stay; the others are the base's, bit for bit.

    deltas: one, (…) float32 or float64, not modified; the result is of its shape and dtype. Halves are of the tensors
    that the patch touches; the two halves of one seed together are the patch. Source: arXiv:2404.18466 sec. 2 (half
    reset), sec. 3 (selection). Differs: drawn by counter from the seed and names.
    """
    return weighted_sum(deltas, list(weights))


SPEC = MethodSpec(
    name="reset",
    title="Half reset",
    summary="Half of what a patch changed goes back to the base",
    source="arXiv:2404.18466",
    function=reset,
    parameters=Parameters,
    laws_at={"identity": {"half": "drawn"}},
    inputs=(1, 1),
    acts_on=acts_on,
)
