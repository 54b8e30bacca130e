"""multislerp: any number of models, or their deltas, averaged on the sphere around their mean direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spherical
from adapterhub.merging.ops.sums import normalised
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What multislerp may be told."""

    of: str = parameter("deltas", "what is averaged: deltas, or the models' weights", choices=("deltas", "weights"))
    eps: float = parameter(1e-8, "a length below which a vector has no direction", low=0, is_low_open=True)


def multislerp(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """The weighted mean of directions in the tangent space of their mean, times the weighted mean length.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. Weights
    are divided by their sum. One delta comes back. Differs from a true Riemannian mean, which is karcher.
    Raises InvalidParameter for weights that add up to 0. Source: mergekit 0.1.5 multislerp.
    """
    shares = normalised("multislerp", weights)
    if len(deltas) == 1:
        return deltas[0].clone()
    is_whole = parameters.of == "weights"
    found = spherical.tangent_mean(
        [site.base + delta if is_whole else delta for delta in deltas], shares, parameters.eps
    )
    return found - site.base if is_whole else found


SPEC = MethodSpec(
    name="multislerp",
    title="Multi-SLERP",
    summary="Many models averaged on the sphere, around their mean direction",
    source="mergekit 0.1.5",
    function=multislerp,
    parameters=Parameters,
    laws=frozenset({"identity", "commutative", "idempotent"}),
    takes_site=True,
)
