"""mask: W + weight · γ ⊙ Δ, with one bit an entry selecting which entries of a delta count.

Fields: bits (ceil(n/8),) uint8, row-major over W as stored, LSB first; delta, the shape of W, any float dtype.
Options: mode, "select"; NotFoldable is raised for another. A weight interpolates: 0 the base, 1 the grafted model.
Source: arXiv:2302.06600 (grafting: γ ⊙ (W_ft - W)); the bit order is numpy.packbits(bitorder="little").
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.encodings import packed_problem
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.ops.indices import unpack_bits
from adapterhub.merging.ops.tensors import as_matrix
from adapterhub.merging.registry import Apply, Parameter, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from adapterhub.merging.encodings import Array


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · γ ⊙ Δ. Raises NotFoldable for a mode other than "select"."""
    for part in parts:
        if part.options.get("mode", "select") != "select":
            raise NotFoldable(f"mask of mode {part.options['mode']!r}: only a mask that selects from a delta folds")

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        columns = tile.shape[1]
        for part in parts:
            selected = unpack_bits(part.fields["bits"], start * columns, stop * columns).view(tile.shape)
            delta = as_matrix(part.fields["delta"])[start:stop].to(tile.dtype)
            tile += (delta * part.weight).masked_fill_(~selected, 0.0)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    delta = part.fields["delta"].flatten()
    selected = unpack_bits(part.fields["bits"], 0, delta.numel())
    return float(delta[selected].double().norm()) * abs(part.weight)


def _bad_value(term: Stored, values: Mapping[str, Array]) -> str | None:
    return packed_problem(values["bits"], prod(term.shape))


SPEC = TermSpec(
    name="mask",
    summary="W + γ ⊙ Δ: selected entries of a delta",
    fields={"bits": stored("bytes", dtypes=["U8"]), "delta": stored("W")},
    effect="additive",
    order=30,
    prepare=_prepare,
    norm=_norm,
    options=(Parameter("mode", "str", "select", "what the bits do", choices=("select",)),),
    bad_value=_bad_value,
)
