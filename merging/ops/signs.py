"""Signs: which direction several deltas agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


TIES = ("positive", "majority")
"""What a sum of exactly 0 elects: the positive sign, or that of most entries of the tensor."""


def elect_signs(deltas: Sequence[torch.Tensor], *, tie: float = 1.0) -> torch.Tensor:
    """1 where the deltas' sum is zero or above, else -1: the sign with the greater total magnitude, entry by entry.

    deltas: at least one, each of one shape and float dtype, not modified; the answer has both. tie: the sign of a sum
    of 0, positive as in mergekit. Source: arXiv:2306.01708 sec. 3, step 2.
    """
    total = _total(deltas)
    return (total >= 0 if tie > 0 else total > 0).to(total.dtype).mul_(2).sub_(1)


def _total(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total
