"""One task's model out of a merge of many: a delta that all tasks share, and masks of what each task takes of it.

Per tensor, or for tensors together: masks and the shared delta belong to entries, and sizes of tensors can be added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.signs import elect_signs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def unified(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """For every entry the elected sign times the largest magnitude that a delta of that sign has there.

    deltas: at least one, of one shape and dtype, not modified; the result has both. A sum of 0 elects the positive
    sign; where no delta has the elected one the entry is 0. Source: arXiv:2405.17461 sec. 3.2 (EMR, elect). Differs:
    the published code elects the negative sign at 0.
    """
    import torch

    signs = elect_signs(deltas)
    largest = torch.zeros_like(signs)
    for delta in deltas:
        largest = torch.maximum(largest, delta * signs)
    return largest * signs


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
