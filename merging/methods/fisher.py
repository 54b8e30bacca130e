"""fisher: every entry the mean of the patches', weighed by how much each patch's data cares for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What fisher may be told."""

    floor: float = parameter(1e-6, "what is added to every entry of a Fisher matrix", low=0)
    normalize: bool = parameter(True, "divide each patch's Fisher matrix by its norm over the whole model")


def fisher(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """Σ wᵢ·Fᵢ⊙Δᵢ / Σ wᵢ·Fᵢ, Fᵢ the mean squared gradients of patch i's data, by entries.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. An entry
    whose weights add up to 0 is the base's. Source: arXiv:2111.09832 eq. 3 (diagonal Fisher; W cancels, so deltas do).
    Differs: norms and floor are those of later comparisons; without them it is the paper's.
    """
    import torch

    above = torch.zeros_like(deltas[0], dtype=torch.float64)
    below = torch.zeros_like(above)
    for delta, weight, one in zip(deltas, weights, site.measured, strict=True):
        assert one.fisher is not None  # the plan found one for every input
        weighed = (one.fisher + parameters.floor) * weight
        if parameters.normalize and one.fisher_norm:
            weighed = weighed / one.fisher_norm
        above += weighed * delta.double()
        below += weighed
    return torch.where(below != 0, above / below, torch.zeros_like(above)).to(deltas[0].dtype)


SPEC = MethodSpec(
    name="fisher",
    title="Fisher merging",
    summary="Every entry the patches' mean, weighed by what each patch's data cares for",
    source="arXiv:2111.09832",
    function=fisher,
    parameters=Parameters,
    laws=frozenset({"identity", "commutative", "idempotent"}),
    takes_site=True,
    statistics="fisher",
)
