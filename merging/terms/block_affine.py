"""block_affine: W cut into square blocks, each block V of a row of blocks becoming V + V·B + B, as MiSS's "bat" does.

Fields: B (m, b, b), any float dtype, one for each row of blocks; W is (m·b, n·b). No options.
Source: arXiv:2409.15371; peft `tuners/miss/layer.py`, get_delta_weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.registry import Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part, a row of blocks at a time."""
    (part,) = parts
    B = part.fields["B"]
    b = B.shape[1]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for index in range(start // b, (stop + b - 1) // b):
            first, last = max(start, index * b), min(stop, (index + 1) * b)
            block = B[index].to(tile.dtype)
            rows = tile[first - start : last - start].view(last - first, -1, b)  # (rows, n, b)
            rows.add_(rows @ block).add_(block[first - index * b : last - index * b].unsqueeze(1))

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: the change depends on W."""


def _misfit(term: Stored) -> str | None:
    m, b, out, fan_in = (term.sizes[name] for name in ("m", "b", "out", "in"))
    is_fit = m * b == out and b and fan_in % b == 0
    return None if is_fit else f"{m} blocks of {b} for a matrix of {(out, fan_in)}"


SPEC = TermSpec(
    name="block_affine",
    summary="W with each of its square blocks V as V + V·B + B",
    fields={"B": stored("m", "b", "b")},
    effect="affine",
    order=8,
    prepare=_prepare,
    norm=_norm,
    misfit=_misfit,
)
