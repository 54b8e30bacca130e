"""circulant: W plus blocks whose rows are one another's shifts, as C³A has.

Fields: kernel (m, n, b), any float dtype; W is (m·b, n·b), and its entry (u·b + s, v·b + j) gets weight · kernel[u, v,
(j - s) mod b]. No options. The blocks are of full rank, so there are no factors.
Source: arXiv:2407.19342; peft `tuners/c3a/utils.py`, get_circulant_fast, which takes these from FFTs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterhub.merging.registry import Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of adding the blocks, gathered from their kernels a tile at a time."""
    import torch

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        rows = torch.arange(start, stop, device=tile.device)
        for part in parts:
            kernel = part.fields["kernel"]
            b = kernel.shape[2]
            shift = (torch.arange(b, device=tile.device) - (rows % b)[:, None]) % b  # (rows, b)
            stored = kernel[rows // b].to(tile.dtype)  # (rows, n, b)
            blocks = stored.gather(2, shift[:, None, :].expand(stored.shape))
            tile.add_(blocks.flatten(1), alpha=part.weight)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    """Every number of the kernel stands b times in W."""
    kernel = part.fields["kernel"]
    return float(kernel.double().norm()) * math.sqrt(kernel.shape[2]) * abs(part.weight)


def _misfit(term: Stored) -> str | None:
    m, k, b = (term.sizes[name] for name in "mkb")
    expected = (term.sizes["out"], term.sizes["in"])
    return None if (m * b, k * b) == expected else f"its blocks make {(m * b, k * b)}; {expected} is expected"


SPEC = TermSpec(
    name="circulant",
    summary="W plus circulant blocks",
    fields={"kernel": stored("m", "k", "b")},
    effect="additive",
    order=16,
    prepare=_prepare,
    norm=_norm,
    misfit=_misfit,
)
