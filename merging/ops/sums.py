"""Weighted sums of deltas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterhub.merging.errors import InvalidParameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def normalised(method: str, weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum. Raises InvalidParameter when that is 0 to within 1e-8."""
    total = math.fsum(weights)
    if abs(total) < 1e-8:
        raise InvalidParameter(f"{method}: the weights {list(weights)} add up to 0, which normalize cannot divide by")
    return [weight / total for weight in weights]


def shared(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum; as they are where that is 0 to within 1e-8, as mergekit does."""
    total = math.fsum(weights)
    return list(weights) if abs(total) < 1e-8 else [weight / total for weight in weights]


def scaled_shares(weights: Sequence[float], scale: float, *, normalize: bool) -> list[float]:
    """The factor on each delta: scale times its weight, or times its share of the weights."""
    return [scale * share for share in (shared(weights) if normalize else weights)]


def weighted_sum(tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """Σ coefficients[i] · tensors[i], in their dtype and shape, added in the given order; inputs are not modified."""
    total = tensors[0] * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        total.add_(tensor, alpha=coefficient)
    return total
