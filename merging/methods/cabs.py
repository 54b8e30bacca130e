"""cabs: of each delta the largest entries of every block, never those that an earlier one took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What cabs may be told."""

    n: int = parameter(64, "entries kept of every block", low=1)
    m: int = parameter(256, "entries of a block", low=1)
    scale: float = parameter(1.0, "λ, the factor on the result")


def check(parameters: Parameters) -> None:
    """Raises InvalidParameter where more are kept than a block has."""
    if parameters.n > parameters.m:
        raise InvalidParameter(f"cabs: keeps n = {parameters.n} of every m = {parameters.m} entries; n is at most m")


def cabs(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """λ · Σ wᵢ·γᵢ⊙Δᵢ, γᵢ the n largest entries of each m in a row that no γⱼ with j < i has: order counts.

    deltas: each (…), float32 or float64, in the order in which they choose; not modified; the result is of their shape
    and dtype. Blocks run over the flat tensor; what is left at its end is not merged. Of equal magnitudes the first.
    Source: arXiv:2503.01874 sec. 4 (conflict-aware, balanced sparsification).
    """
    import torch

    count = deltas[0].numel() // parameters.m * parameters.m
    merged = torch.zeros_like(deltas[0]).reshape(-1)
    is_taken = torch.zeros(count, dtype=torch.bool, device=merged.device).view(-1, parameters.m)
    for delta, weight in zip(deltas, weights, strict=True):
        blocks = delta.reshape(-1)[:count].view(-1, parameters.m)
        sizes = blocks.abs().masked_fill(is_taken, -1.0)
        chosen = torch.zeros_like(is_taken)
        chosen.scatter_(1, torch.argsort(sizes, dim=1, stable=True, descending=True)[:, : parameters.n], True)
        chosen &= ~is_taken
        merged[:count] += (blocks * chosen).view(-1) * (weight * parameters.scale)
        is_taken |= chosen
    return merged.view(deltas[0].shape)


SPEC = MethodSpec(
    name="cabs",
    title="CABS",
    summary="The largest entries of every block, those not yet taken",
    source="arXiv:2503.01874",
    function=cabs,
    parameters=Parameters,
    laws=frozenset({"neutral_zero"}),
    check=check,
    is_experimental=True,
)
