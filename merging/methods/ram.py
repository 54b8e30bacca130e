"""ram: entries that one model changed stay whole; those that several changed are averaged over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.overlap import contributions
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What ram may be told."""

    epsilon: float = parameter(1e-5, "magnitude up to which an entry counts as unchanged", low=0)


def ram(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Σ Δᵢ / c over the deltas that change an entry, c their number.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype.
    Source: arXiv:2601.13572 (reinforced agent merging); mergekit 0.1.5 ram.
    """
    kept, counts = contributions(deltas, parameters.epsilon)
    return sum(kept[1:], kept[0]) / counts.clamp_min(1.0)


SPEC = MethodSpec(
    name="ram",
    title="RAM",
    summary="Entries averaged over the patches that change them",
    source="arXiv:2601.13572",
    function=ram,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"epsilon": 0.0}, "idempotent": {"epsilon": 0.0}},
    takes_weights=False,
)
