"""regmean: the linear layers whose outputs are nearest to each patch's own, on the inputs that each patch saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.grams import damped, divided
from adapterhub.merging.ops.sums import normalised, weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


@dataclass(frozen=True)
class Parameters:
    """What regmean may be told."""

    alpha: float = parameter(0.9, "the factor on the entries of the Grams beside their diagonals", low=0, high=1)
    counts: bool = parameter(False, "whether a patch counts by how many samples its Gram is of")


def regmean(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """(Σ wᵢ·Δᵢ Gᵢ)(Σ wᵢ·Gᵢ)⁺, Gᵢ the mean of x xᵀ over inputs x, off its diagonal times α: least Σ wᵢ·‖(M - Δᵢ)Xᵢ‖².

    deltas: each (out, in), or (in, out) where the site is stored so, float32 or float64, not modified; the result is of
    their shape and dtype; float64 inside. What has no Gram, such as biases, norms, embeddings and convolutions, is
    averaged by weights. Directions that no patch's data has stay the base's. Raises InvalidParameter for weights that
    add up to 0. Source: arXiv:2212.09849 eq. 2 and sec. 3.2 (W cancels, so deltas do). Differs: the paper's Grams are
    sums over samples (counts=true), its published code's means.
    """
    shares = normalised("regmean", weights)
    grams = [damped(one.gram, parameters.alpha) for one in site.measured if one.gram is not None]
    if len(grams) < len(deltas):
        return weighted_sum(deltas, shares)
    is_transposed = site.measured[0].is_transposed
    if parameters.counts:
        shares = [share * one.count for share, one in zip(shares, site.measured, strict=True)]
    products = [(one.T if is_transposed else one).double() @ gram for one, gram in zip(deltas, grams, strict=True)]
    merged = divided(weighted_sum(products, shares), weighted_sum(grams, shares))
    return (merged.T if is_transposed else merged).to(deltas[0].dtype).contiguous()


SPEC = MethodSpec(
    name="regmean",
    title="RegMean",
    summary="Linear layers nearest to every patch's own on that patch's inputs",
    source="arXiv:2212.09849",
    function=regmean,
    parameters=Parameters,
    laws=frozenset({"identity", "commutative", "idempotent"}),
    takes_site=True,
    statistics="gram",
)
