"""scale: W ⊙ row ⊙ col, factors on whole outputs or inputs, as IA³ and head scales have.

Fields: row (out,) and col (in,), either or both, any float dtype. Options: transpose, True where the site stores
(in, out), so that row goes along its columns. A site of one dimension, such as a bias, takes row.
Source: arXiv:2205.05638 sec. 3.3 (IA³); peft `tuners/ia3/layer.py`, merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.registry import TRANSPOSE, Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part: rows of the tile times `along`, its columns times `across`."""
    (part,) = parts
    first, second = ("col", "row") if part.options.get("transpose") else ("row", "col")
    along, across = part.fields.get(first), part.fields.get(second)

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        if along is not None:
            tile.mul_(along[start:stop].to(tile.dtype).unsqueeze(1))
        if across is not None:
            tile.mul_(across.to(tile.dtype))

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: the change is a multiple of W."""


def _misfit(term: Stored) -> str | None:
    return None if term.fields else "has neither row nor col"


SPEC = TermSpec(
    name="scale",
    summary="W times factors on its rows or columns",
    fields={"row": stored("out", is_optional=True), "col": stored("in", is_optional=True)},
    effect="affine",
    order=5,
    prepare=_prepare,
    norm=_norm,
    options=(TRANSPOSE,),
    misfit=_misfit,
)
