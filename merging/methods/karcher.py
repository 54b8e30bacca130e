"""karcher: the Riemannian centre of models on the sphere, each counting alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops import spherical
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What karcher may be told."""

    max_iter: int = parameter(10, "most rounds", low=1, high=100_000)
    tol: float = parameter(1e-5, "a step below which the mean is found", low=0, is_low_open=True)


def karcher(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """The Karcher mean of the models W + Δ, less the base; to count the base too, name it among the inputs.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. Each
    tensor is one vector; directions are averaged on the sphere and lengths arithmetically.
    Source: Karcher 1977; mergekit 0.1.5 karcher.
    """
    models = [site.base + delta for delta in deltas]
    return spherical.karcher_mean(models, parameters.max_iter, parameters.tol) - site.base


SPEC = MethodSpec(
    name="karcher",
    title="Karcher mean",
    summary="The centre of several models on the sphere",
    source="Karcher, Comm. Pure Appl. Math. 30 (1977)",
    function=karcher,
    parameters=Parameters,
    laws=frozenset({"identity", "commutative", "idempotent"}),
    takes_site=True,
    takes_weights=False,
)
