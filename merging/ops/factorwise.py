"""Merging A and B of LoRAs apart, as PEFT's add_weighted_adapter does: of the factors as trained, not of the deltas.

What is made of A and B entry by entry depends on how each product was divided into them: another division of the same
delta gives another result, and products of one LoRA's A with another's B come in. Exact sums need none of this.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import Factors, Trained
from adapterhub.merging.ops.signs import elect_signs
from adapterhub.merging.ops.sums import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

SIGNS = ("total", "frequency")
"""Which sign an entry is given: that of the sum of the patches' values, or of the sum of their signs."""


def factorwise(
    loras: Sequence[Trained | None],
    weights: Sequence[float],
    merge: Callable[[Sequence[torch.Tensor], Sequence[float], str], torch.Tensor],
    prepare: Callable[[torch.Tensor, int, str], torch.Tensor] = lambda factor, number, name: factor,
) -> Factors:
    """B (out, r) @ A (r, in) merged apart, each factor with the root of its LoRA's weight times scaling; float64.

    loras: not modified; None for one that has nothing here, at least one is not. prepare: `(factor, number of the
    input, "A" or "B")` before merging, where there is more than one input; a single one comes back whole. The sign of
    a weight goes into A. Source: peft 0.21.2 `tuners/lora/model.py`, _generalized_task_arithmetic_weighted_adapter.
    """
    found = [(number, one, weights[number] * one.scaling) for number, one in enumerate(loras) if one is not None]
    roots = [math.sqrt(abs(factor)) for _, _, factor in found]
    signed = [math.copysign(root, factor) for root, (_, _, factor) in zip(roots, found, strict=True)]
    if len(loras) == 1:
        return Factors(found[0][1].B * roots[0], found[0][1].A * signed[0])
    A = [prepare(one.A, number, "A") for number, one, _ in found]
    B = [prepare(one.B, number, "B") for number, one, _ in found]
    return Factors(merge(B, roots, "B"), merge(A, signed, "A"))


def summed(factors: Sequence[torch.Tensor], weights: Sequence[float], name: str = "") -> torch.Tensor:
    """Σ wᵢ·Fᵢ."""
    return weighted_sum(factors, list(weights))


def agreed(tensors: Sequence[torch.Tensor], weights: Sequence[float], signs: str) -> torch.Tensor:
    """Σ agreeing wᵢ·Tᵢ / their number: PEFT's TIES, where a weight, even a negative one, has no part in agreeing.

    tensors: at least one, of one shape and dtype, not modified; the result has both. signs: one of `SIGNS`, of the
    tensors unweighted; a tie is positive. Source: peft 0.21.2 `utils/merge_utils.py`, ties.
    """
    import torch

    elected = elect_signs(tensors if signs == "total" else [one.sign() for one in tensors])
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for one, weight in zip(tensors, weights, strict=True):
        agrees = (one.sign() == elected).to(one.dtype)
        total.add_(one * agrees, alpha=weight)
        count += agrees
    return total / count.clamp_min(1.0)
