"""What several deltas agree on: a sign for every entry, and the mean of those that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.signs import elect_signs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_PIECE = 1 << 16
"""Entries at a time: pieces that stay in a core's cache."""


def average_agreeing(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: str = "weights",
    is_weighted: bool = True,
) -> torch.Tensor:
    """λ · Σ agreeing wᵢ·Δᵢ / Σ agreeing wᵢ: entries of the elected sign alone, which zeros never have.

    deltas: at least one, of one shape and dtype, not modified; the result has both. normalize: what is divided by,
    "weights", the sum of the agreeing ones, "count", their number, or "none"; a divisor of 0 leaves an entry undivided.
    is_weighted: whether signs are elected on the deltas times their weights.
    Source: arXiv:2306.01708 sec. 3, steps 2 and 3.
    """
    import torch

    flat = [delta.reshape(-1) for delta in deltas]
    merged = torch.empty_like(flat[0])
    least = torch.finfo(merged.dtype).tiny
    for start in range(0, merged.numel(), _PIECE):
        piece = [delta[start : start + _PIECE] for delta in flat]
        weighted = [delta * weight for delta, weight in zip(piece, weights, strict=True)]
        signs = elect_signs(weighted if is_weighted else piece)
        total, divisor = torch.zeros_like(signs), torch.zeros_like(signs)
        for one, weight in zip(weighted, weights, strict=True):
            agreeing = (one * signs).clamp_min_(0)  # |w·Δ| where the signs agree, else 0
            total += agreeing
            divisor.add_(agreeing.sign_(), alpha=weight if normalize == "weights" else 1.0)
        if normalize == "count" or (normalize == "weights" and min(weights) > 0):
            total /= divisor.clamp_min_(least)  # where none agrees both are 0; far faster than a mask
        elif normalize == "weights":
            total /= divisor.masked_fill_(divisor == 0, 1.0)
        merged[start : start + _PIECE] = total.mul_(signs).mul_(scale)
    return merged.view(deltas[0].shape)
