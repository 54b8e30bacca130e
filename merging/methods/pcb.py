"""pcb: entries weighted by how large they are within a patch and how well they go with the other patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What pcb may be told."""

    density: float = parameter(
        0.1, "share of each patch's entries that counts, per tensor; the paper's vision runs have 0.05", low=0, high=1
    )
    clip: float = parameter(0.0001, "share of the entries clipped at either end of the magnitudes", low=0, high=0.5)
    scale: float = parameter(1.0, "λ, the factor on the result; the paper has 1.2 without a search")


def pcb(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """λ · Σ wᵢ·cᵢ⊙βᵢ / Σ βᵢ: cᵢ the delta with clipped magnitudes, βᵢ its entries' competition, brought to 0 … 1.

    β is Pᵢ = exp(T·|cᵢ|²)·tanh(Δᵢ⊙Σ Δ), magnitudes scaled to 0 … 1, cut from below at its quantile 1 - density.
    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype; float64 inside. What is
    constant over a tensor has the scaled value 1 where positive, else 0; the published code divides by 0 there.
    Source: arXiv:2410.02396 sec. 3 and its published PCB_merge. Differs: quantiles are per tensor, there of the whole
    model.
    """
    import torch

    wide = [delta.double() for delta in deltas]
    total = torch.stack(wide).sum(0)
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(wide, weights, strict=True):
        size = _clamped(delta.abs(), parameters.clip, parameters.clip)
        competition = torch.exp(len(deltas) * _scaled(size) ** 2) * torch.tanh(delta * total)
        balance = _scaled(_clamped(competition, 1 - parameters.density, 0.0))
        merged += weight * delta.sign() * size * balance
        divisor += balance
    return (parameters.scale * merged / divisor.clamp_min(1e-12)).to(deltas[0].dtype)


def _clamped(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clipped to the values at the places floor(n·low) and trunc(n·(1 - high) - 1) of n in ascending order."""
    count = values.numel()
    if not count:
        return values
    ordered = values.reshape(-1).sort().values
    return values.clamp(ordered[min(int(count * low), count - 1)], ordered[max(int(count * (1 - high) - 1), 0)])


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """(x - min) / (max - min); of constant ones 1 where positive, else 0."""
    if not values.numel():
        return values
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else (values > 0).to(values.dtype)


SPEC = MethodSpec(
    name="pcb",
    title="PCB-Merging",
    summary="Entries weighted by their size in a patch and their agreement with the others",
    source="arXiv:2410.02396",
    function=pcb,
    parameters=Parameters,
    laws=frozenset({"commutative"}),
    is_experimental=True,
)
