"""signs: W + weight · Σ scale ⊙ (2·sign - 1), one bit an entry and one scale a tensor, a row or a group of columns.

Fields: sign (L, ceil(n/8)) uint8, L levels of bits, row-major over W as stored, least significant bit first, 1 for +;
scale (L, 1, 1), (L, out, 1), (L, 1, g) or (L, out, g), any float dtype, not negative, each of g groups having in/g
columns; optionally zero (L, ceil(n/8)), whose set bits are entries that are neither + nor -. No options.
Source: arXiv:2402.10193 eq. 1-3 (BitDelta); more levels are its section 4.4; the bit order is
numpy.packbits(bitorder="little").
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


def _level(part: Part, level: int, start: int, stop: int, columns: int) -> torch.Tensor:
    """Rows start..stop of one level's delta, in the scale's own dtype widened to float64, without the weight."""
    signs = unpack_bits(part.fields["sign"][level], start * columns, stop * columns).view(stop - start, columns)
    scale = part.fields["scale"][level].double()
    rows = scale if scale.shape[0] == 1 else scale[start:stop]
    values = rows.repeat_interleave(columns // scale.shape[1], 1).expand(stop - start, columns)
    delta = values.where(signs, -values)
    if "zero" in part.fields:
        zero = unpack_bits(part.fields["zero"][level], start * columns, stop * columns).view(stop - start, columns)
        delta = delta.masked_fill(zero, 0.0)
    return delta


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of adding every level's signs times their scales."""

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for part in parts:
            for level in range(part.fields["sign"].shape[0]):
                delta = _level(part, level, start, stop, tile.shape[1])
                tile.add_(delta.to(tile.dtype), alpha=part.weight)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    rows = shape[0] if shape else 1
    columns = prod(shape[1:])
    levels = [_level(part, level, 0, rows, columns) for level in range(part.fields["sign"].shape[0])]
    return float(sum(levels[1:], levels[0]).norm()) * abs(part.weight)


def _misfit(term: Stored) -> str | None:
    levels, scales, groups = term.sizes["levels"], term.sizes["scales"], term.sizes["groups"]
    out, fan_in = term.sizes["out"], term.sizes["in"]
    if not levels:
        return "has no level of signs"
    if scales not in (1, out):
        return f"scale has {scales} rows; 1 or {out} are expected"
    return None if groups and fan_in % groups == 0 else f"scale has {groups} groups, which do not divide {fan_in}"


def _bad_value(term: Stored, values: Mapping[str, Array]) -> str | None:
    scale = values["scale"]
    if not ((scale >= 0) & (scale < float("inf"))).all():
        return "scale is negative or not finite; flip the signs instead"
    packed = [row for name in ("sign", "zero") if name in values for row in values[name]]
    return next((one for one in (packed_problem(row, prod(term.shape)) for row in packed) if one), None)


SPEC = TermSpec(
    name="signs",
    summary="W plus one scale a tensor, row or group, with one sign an entry",
    fields={
        "sign": stored("levels", "bytes", dtypes=["U8"]),
        "scale": stored("levels", "scales", "groups", is_read=True),
        "zero": stored("levels", "bytes", dtypes=["U8"], is_optional=True),
    },
    effect="additive",
    order=35,
    prepare=_prepare,
    norm=_norm,
    misfit=_misfit,
    bad_value=_bad_value,
)
