"""What several deltas agree on: a sign for every entry, and the mean of those that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from adapterhub.merging.ops.signs import elect_signs
from adapterhub.merging.ops.sums import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from adapterhub.merging.registry import Piece

_PIECE = 1 << 16
"""Entries at a time: pieces that stay in a core's cache."""


def average_agreeing(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: str = "weights",
    is_weighted: bool = True,
    tie: float = 1.0,
) -> torch.Tensor:
    """λ · Σ agreeing wᵢ·Δᵢ / Σ agreeing wᵢ: entries of the elected sign alone, which zeros never have.

    deltas: at least one, of one shape and dtype, not modified; the result has both. normalize: what is divided by,
    "weights", the sum of the agreeing ones, "count", their number, or "none"; a divisor of 0 leaves an entry undivided.
    is_weighted: whether signs are elected on the deltas times their weights. tie: the sign that a sum of 0 elects.
    Source: arXiv:2306.01708 sec. 3, steps 2 and 3.
    """
    import torch

    flat = [delta.reshape(-1) for delta in deltas]
    merged = torch.empty_like(flat[0])
    least = torch.finfo(merged.dtype).tiny
    for start in range(0, merged.numel(), _PIECE):
        piece = [delta[start : start + _PIECE] for delta in flat]
        weighted = [delta * weight for delta, weight in zip(piece, weights, strict=True)]
        signs = elect_signs(weighted if is_weighted else piece, tie=tie)
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


class Election(Protocol):
    """What a method's parameters say of how signs are elected, and of what those that agree come to.

    normalize: as `average_agreeing` has it; True for "weights", False for "none". elect: "weighted" or "unweighted".
    tie: one of `TIES`.
    """

    @property
    def scale(self) -> float: ...

    @property
    def normalize(self) -> str | bool: ...

    @property
    def elect(self) -> str: ...

    @property
    def tie(self) -> str: ...


def elected(kept: Sequence[torch.Tensor], weights: Sequence[float], parameters: Election) -> torch.Tensor:
    """`average_agreeing` of what is kept of whole deltas, as the parameters say."""
    return _average(kept, weights, parameters, sign_of_zero(parameters.tie, [kept], weights, parameters.elect))


def elected_by_pieces(
    pieces: Iterable[Piece],
    weights: Sequence[float],
    parameters: Election,
    keeper: Callable[[], Callable[[Piece], Sequence[torch.Tensor]]],
) -> Callable[[Piece], torch.Tensor]:
    """`elected` of what is kept of each piece. keeper: makes what is called with the pieces in their order.

    For tie="majority" the pieces are gone through once more before.
    """
    zero = 1.0
    if parameters.tie != "positive":
        zero = sign_of_zero(parameters.tie, map(keeper(), pieces), weights, parameters.elect)
    keep = keeper()
    return lambda piece: _average(keep(piece), weights, parameters, zero)


def _average(kept: Sequence[torch.Tensor], weights: Sequence[float], parameters: Election, tie: float) -> torch.Tensor:
    normalize = parameters.normalize
    return average_agreeing(
        kept,
        weights,
        scale=parameters.scale,
        normalize=normalize if isinstance(normalize, str) else "weights" if normalize else "none",
        is_weighted=parameters.elect == "weighted",
        tie=tie,
    )


def sign_of_zero(tie: str, pieces: Iterable[Sequence[torch.Tensor]], weights: Sequence[float], elect: str) -> float:
    """The sign that a sum of exactly 0 elects in a tensor: 1.0, or for "majority" that of most of its entries' sums.

    tie: one of `TIES`. pieces: the deltas, or rows of them one after another; looked at for "majority" alone. elect:
    "weighted" or "unweighted". As many of either sign are positive. Source: the published code of arXiv:2306.01708,
    resolve_zero_signs; there over the whole model.
    """
    if tie == "positive":
        return 1.0
    balance = 0.0
    for deltas in pieces:
        factors = list(weights) if elect == "weighted" else [1.0] * len(deltas)
        balance += float(weighted_sum(deltas, factors).sign().double().sum())
    return -1.0 if balance < 0 else 1.0
