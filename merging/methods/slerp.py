"""slerp: base and one model on the arc between them. One angle for the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spherical
from adapterhub.merging.registry import Combination, MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite, Pieces


@dataclass(frozen=True)
class Parameters:
    """What slerp may be told."""

    t: float = parameter(0.5, "how far from the base to the model, 0 the base", low=0, high=1)


def slerp(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """The model a share t of the way from the base to W + Δ, spherically interpolated, less the base.

    deltas: one, (…) float32 or float64, not modified; the result is of its shape and dtype; float64 inside.
    The tensor is one vector; nearly parallel ones are interpolated linearly.
    Source: Shoemake 1985; mergekit 0.1.5 slerp.
    """
    return spherical.slerp(site.base, site.base + deltas[0], parameters.t) - site.base


def by_pieces(pieces: Pieces, weights: Sequence[float], parameters: Parameters) -> Combination:
    """The same, some rows at a time."""
    left, right = spherical.shares(pieces, parameters.t)
    return Combination(left + right - 1, (right,))


SPEC = MethodSpec(
    name="slerp",
    title="SLERP",
    summary="Base and one model on the arc between them",
    source="Shoemake, SIGGRAPH 1985",
    function=slerp,
    parameters=Parameters,
    takes_site=True,
    inputs=(1, 1),
    takes_weights=False,
    by_pieces=by_pieces,
)
