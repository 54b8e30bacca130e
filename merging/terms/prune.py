"""prune: W ⊙ γ, with one bit an entry that says which entries stay.

Fields: bits (ceil(n/8),) uint8, row-major over W as stored, least significant bit first, the tail zero. No options.
Source: arXiv:1803.03635 (masks over weights); the bit order is numpy.packbits(bitorder="little").
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.encodings import packed_problem
from adapterhub.merging.ops.indices import unpack_bits
from adapterhub.merging.registry import Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from adapterhub.merging.encodings import Array


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part: entries whose bit is 0 become 0."""
    (part,) = parts

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        columns = tile.shape[1]
        kept = unpack_bits(part.fields["bits"], start * columns, stop * columns).view(tile.shape)
        tile.masked_fill_(~kept, 0.0)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: what is taken away is W's own."""


def _bad_value(term: Stored, values: Mapping[str, Array]) -> str | None:
    return packed_problem(values["bits"], prod(term.shape))


SPEC = TermSpec(
    name="prune",
    summary="W with some entries set to zero",
    fields={"bits": stored("bytes", dtypes=["U8"])},
    effect="affine",
    order=7,
    prepare=_prepare,
    norm=_norm,
    bad_value=_bad_value,
)
