"""rotate: W · Rᵀ with block-diagonal R, the inputs turned, as OFT does.

Fields: R (n, b, b), any float dtype, usually orthogonal; n·b is the number of inputs (a convolution's in·k·k), or n is
1 and all blocks are the same. No options.
Source: arXiv:2306.07280; peft `tuners/oft/layer.py`, merge: (R Wᵀ)ᵀ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.registry import Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part: each block of columns times its own Rᵀ."""
    import torch

    (part,) = parts
    R = part.fields["R"]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        blocks = tile.view(len(tile), -1, R.shape[1])  # (rows, n, b)
        turned = torch.einsum("pnj,nij->pni", blocks, R.to(tile.dtype).expand(blocks.shape[1], -1, -1))
        tile.copy_(turned.reshape(tile.shape))

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: the change depends on W."""


def _misfit(term: Stored) -> str | None:
    k, b, fan_in = term.sizes["k"], term.sizes["b"], term.sizes["in"]
    is_fit = k * b == fan_in or (k == 1 and b and fan_in % b == 0)
    return None if is_fit else f"{k} blocks of {b} do not turn {fan_in} inputs"


SPEC = TermSpec(
    name="rotate",
    summary="W with its inputs turned by blocks",
    fields={"R": stored("k", "b", "b")},
    effect="affine",
    order=4,
    prepare=_prepare,
    norm=_norm,
    misfit=_misfit,
)
