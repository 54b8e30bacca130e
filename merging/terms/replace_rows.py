"""replace_rows: some rows of W by stored ones: W[idx] + weight · (value - W[idx]).

Fields: idx (n,) int64 or int32, unique and below the number of rows; value (n, d), any float dtype, d the rest of W's
shape as one number. Acts before all terms but `replace`. Where several patches replace one row, each counts as its
delta against what it finds.
Source: peft's trainable tokens, `tuners/trainable_tokens/layer.py`, which copies rows in spite of the name "delta".
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.registry import Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from adapterhub.merging.encodings import Array


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of putting rows in place; a weight of 1 copies them."""

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        before = tile if len(parts) == 1 else tile.clone()
        for part in parts:
            idx = part.fields["idx"].long()
            here = (idx >= start) & (idx < stop)
            rows = idx[here] - start
            value = part.fields["value"].flatten(1)[here].to(tile.dtype)
            if part.weight == 1.0 and len(parts) == 1:
                tile[rows] = value
            else:
                tile.index_add_(0, rows, value - before[rows], alpha=part.weight)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: how far the rows are from W's cannot be told without W."""


def _misfit(term: Stored) -> str | None:
    rest = prod(term.shape[1:])
    width = term.sizes["width"]
    return None if width == rest else f"value has rows of {width} numbers, the parameter has rows of {rest}"


def _bad_value(term: Stored, values: Mapping[str, Array]) -> str | None:
    idx = values["idx"]
    if idx.size and not 0 <= idx.min() <= idx.max() < term.shape[0]:
        return f"idx has rows from {idx.min()} to {idx.max()}, the parameter has {term.shape[0]}"
    return "idx names a row twice" if len(set(idx.tolist())) != idx.size else None


SPEC = TermSpec(
    name="replace_rows",
    summary="Stored rows instead of some of W's",
    fields={"idx": stored("k", dtypes=["I32", "I64"]), "value": stored("k", "width")},
    effect="replace",
    order=1,
    prepare=_prepare,
    norm=_norm,
    misfit=_misfit,
    bad_value=_bad_value,
)
