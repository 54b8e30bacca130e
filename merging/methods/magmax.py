"""magmax: of every entry the delta that changes it most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What magmax may be told."""

    scale: float = parameter(1.0, "λ, the factor on the result; the paper takes 0.5")


def magmax(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """λ · wᵢ·Δᵢ, for every entry of the i that is largest in magnitude there; of equal ones the positive.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype.
    Source: arXiv:2407.06322 sec. 4. Differs: there the later task takes an entry of equal magnitudes.
    """
    import torch

    largest = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        other = delta * weight
        is_larger = (other.abs() > largest.abs()) | ((other.abs() == largest.abs()) & (other > largest))
        largest = torch.where(is_larger, other, largest)
    return largest * parameters.scale


SPEC = MethodSpec(
    name="magmax",
    title="MagMax",
    summary="Of every entry the patch that changes it most",
    source="arXiv:2407.06322",
    function=magmax,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"scale": 1.0}},
    is_experimental=True,
)
