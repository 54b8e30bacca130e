"""localize_and_stitch: the few largest entries of each delta, averaged where they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sparsify import keep_largest
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What localize_and_stitch may be told."""

    density: float = parameter(0.05, "share of each patch's entries kept", low=0, high=1, is_low_open=True)


def localize_and_stitch(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters
) -> torch.Tensor:
    """Σ wᵢ·γᵢ⊙Δᵢ / Σ γᵢ, γᵢ the mask of the largest entries of Δᵢ: an entry that one delta kept is taken whole.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. At least one entry of a
    delta is kept. Patches whose masks were learnt (sparse and mask patches) take density 1.
    Source: arXiv:2408.13656 sec. 3 (dataless localisation, stitching).
    """
    import torch

    total, counts = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        kept = keep_largest(delta, parameters.density)
        total.add_(kept, alpha=weight)
        counts += (kept != 0).to(kept.dtype)
    return total / counts.clamp_min(1.0)


SPEC = MethodSpec(
    name="localize_and_stitch",
    title="Localize-and-Stitch",
    summary="The few largest entries of each patch, averaged where they meet",
    source="arXiv:2408.13656",
    function=localize_and_stitch,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"density": 1.0}},
    is_experimental=True,
)
