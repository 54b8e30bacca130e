"""Which of several deltas change an entry, and how many do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def contributions(deltas: Sequence[torch.Tensor], epsilon: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each delta with its entries up to `epsilon` set to 0, and how many deltas change an entry; all of their dtype."""
    import torch

    kept = [torch.where(delta.abs() > epsilon, delta, torch.zeros_like(delta)) for delta in deltas]
    counts = torch.zeros_like(deltas[0])
    for delta in deltas:
        counts += (delta.abs() > epsilon).to(delta.dtype)
    return kept, counts
