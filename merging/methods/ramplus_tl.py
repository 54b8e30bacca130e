"""ramplus_tl: as ram, and what a model alone changed is strengthened by how much of its change was shared."""

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
    """What ramplus_tl may be told."""

    epsilon: float = parameter(1e-5, "magnitude up to which an entry counts as unchanged", low=0)
    r: float = parameter(0.1, "how much shared changes strengthen the unique ones", low=0)
    alpha: float = parameter(0.2, "the most that the ratio of shared to unique counts", low=0)


def ramplus_tl(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Shared entries averaged over their contributors, unique ones times 1 + r · min(α, shared / unique).

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. shared, unique: how many
    entries of the tensor a delta changes with others and alone; without unique ones the ratio is 0.
    Source: arXiv:2601.13572 (reinforced agent merging, RAM+); mergekit 0.1.5 ramplus_tl.
    """
    kept, counts = contributions(deltas, parameters.epsilon)
    is_unique = counts == 1
    merged = kept[0] * 0
    for one in kept:
        is_mine = one != 0
        unique = int((is_mine & is_unique).sum())
        shared = int((is_mine & ~is_unique).sum())
        factor = 1 + parameters.r * min(parameters.alpha, shared / unique if unique else 0.0)
        merged += one / counts.clamp_min(1.0) * is_unique.to(one.dtype).mul(factor - 1).add(1)
    return merged


SPEC = MethodSpec(
    name="ramplus_tl",
    title="RAM+",
    summary="As RAM, and unique changes strengthened",
    source="arXiv:2601.13572",
    function=ramplus_tl,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    takes_weights=False,
)
