"""One task's model out of a merge of many: a delta that all tasks share, and masks of what each task takes of it.

Per tensor, or for tensors together: masks and the shared delta belong to entries, and sizes of tensors can be added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def unify(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """sgn(Σ Δᵢ) times the largest |Δᵢ| of that sign, entry by entry; 0 where the sum is.

    deltas: at least one, of one shape and dtype, not modified; the result has both. Source: arXiv:2405.17461 sec. 3.2
    (EMR, elect). Differs: the published code elects the negative sign at a sum of 0.
    """
    import torch

    signs = weighted_sum(deltas, [1.0] * len(deltas)).sign()
    largest = torch.zeros_like(signs)
    for delta in deltas:
        largest = torch.maximum(largest, delta * signs)  # |Δ| where the signs agree, else 0 or less
    return signs * largest


def emr_mask(delta: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Where a task's delta has the sign of the shared one, bool. Source: arXiv:2405.17461 sec. 3.2 (mask)."""
    return delta * shared > 0


def emr_scale(size: float, masked: float) -> float:
    """What brings the masked shared delta to the task's size; 0.0 where nothing is left of it.

    size, masked: Σ|Δ| of the task and of the masked shared delta, over one tensor or all. Source: as above (rescale).
    """
    return size / masked if masked else 0.0


def tall_mask(delta: torch.Tensor, total: torch.Tensor, factor: float) -> torch.Tensor:
    """|Δ| > λ·|τ - Δ|: where what others bring into the sum τ does not outweigh the task, bool.

    factor: λ, at least 0, which keeps every entry that the task changes. Source: arXiv:2405.07813 eq. 6.
    """
    return delta.abs() > factor * (total - delta).abs()
