"""sce: keep the entries on which models differ most, weight models by their energy there, erase minority signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.signs import elect_signs
from adapterhub.merging.ops.sparsify import largest
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What sce may be told."""

    select_topk: float = parameter(1.0, "share of the entries kept, of those that vary", low=0, high=1)


def sce(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Σ cᵢ·Δᵢ / Σ cᵢ over the deltas of the elected sign, cᵢ the share of Δᵢ in the mean squares.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. Selected are the entries
    of greatest variance over the deltas, a share of those that vary at all, for all deltas alike; a single delta stays
    whole. Signs are elected on the deltas unweighted. Source: arXiv:2408.07990 sec. 3.3 (select, calculate, erase).
    """
    import torch

    if parameters.select_topk < 1 and len(deltas) > 1:
        variance = torch.stack([delta.double() for delta in deltas]).var(0, unbiased=False)
        mask = largest(variance, int(int(torch.count_nonzero(variance)) * parameters.select_topk))
        deltas = [delta * mask for delta in deltas]
    energies = [float(delta.double().square().mean()) if delta.numel() else 0.0 for delta in deltas]
    total = sum(energies)
    shares = [energy / total for energy in energies] if total >= 1e-6 else [1 / len(deltas)] * len(deltas)
    signs = elect_signs(deltas)
    merged, divisor = torch.zeros_like(signs), torch.zeros_like(signs)
    for delta, share in zip(deltas, shares, strict=True):
        agreeing = (delta.sign() == signs).to(delta.dtype)
        merged += delta * agreeing * share
        divisor += agreeing * share
    return merged / divisor.clamp_min(1e-6)


SPEC = MethodSpec(
    name="sce",
    title="SCE",
    summary="Entries that vary most, models weighted by their energy, minority signs erased",
    source="arXiv:2408.07990",
    function=sce,
    parameters=Parameters,
    laws=frozenset({"identity", "commutative"}),
    laws_at={"neutral_zero": {"select_topk": 1.0}, "idempotent": {"select_topk": 1.0}},
    takes_weights=False,
)
