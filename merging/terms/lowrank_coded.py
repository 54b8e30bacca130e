"""lowrank_coded: W + weight · B·A with both factors as whole numbers of a few bits, times a scale for each rank.

Fields: A and B, the codes of (r, in) and (r, out), U8, row-major, `bits` to a code, least significant first, the tail
zero; A_scale (r, g) and B_scale (r, g'), any float dtype, each for in/g (out/g') codes side by side. A code c stands
for (c - 2^(bits - 1)) times its scale. Options: bits, 2 to 8; transpose, True where the site stores (in, out).
Several terms on one site give its large singular directions more bits than its small ones.
Source: arXiv:2406.08903 sec. 3 (Delta-CoMe, mixed-precision delta compression).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterhub.merging.ops.indices import unpack_codes
from adapterhub.merging.ops.lowrank import Factors, inner_product
from adapterhub.merging.registry import TRANSPOSE, Apply, Parameter, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from adapterhub.merging.encodings import Array


def _factors(part: Part, shape: Sequence[int]) -> Factors:
    """The float32 factors of the site as it is stored; the weight is in the left one."""
    transpose = bool(part.options.get("transpose"))
    fan_in, out = math.prod(shape[1:]), shape[0]
    if transpose:
        fan_in, out = out, fan_in
    A = _decoded(part, "A", fan_in)  # (r, in)
    B = _decoded(part, "B", out)  # (r, out)
    return Factors(A.T * part.weight, B) if transpose else Factors(B.T * part.weight, A)


def _decoded(part: Part, name: str, columns: int) -> torch.Tensor:
    """The factor (r, columns) that codes and scales stand for, float32."""
    bits = int(part.options["bits"])
    scale = part.fields[f"{name}_scale"].float()  # (r, g)
    codes = unpack_codes(part.fields[name], bits, scale.shape[0] * columns).view(scale.shape[0], columns)
    decoded: torch.Tensor = (codes - 2 ** (bits - 1)).float() * scale.repeat_interleave(columns // scale.shape[1], 1)
    return decoded


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of adding each product."""
    products = [_factors(part, W.shape) for part in parts]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for left, right in products:
            tile.addmm_(left[start:stop].to(tile.dtype), right.to(tile.dtype))

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    product = _factors(part, shape)
    return math.sqrt(max(inner_product(product, product), 0.0))


def _misfit(term: Stored) -> str | None:
    bits = term.options.get("bits")
    if bits is None:
        return "does not say how many bits a code has"
    for name, columns, groups in (("A", term.sizes["in"], "a_groups"), ("B", term.sizes["out"], "b_groups")):
        expected = (term.sizes["r"] * columns * bits + 7) // 8
        if term.fields[name] != (expected,):
            return f"{name} is {term.fields[name]}; {expected} bytes hold its codes of {bits} bits"
        if not term.sizes[groups] or columns % term.sizes[groups]:
            return f"{name}_scale has {term.sizes[groups]} groups, which do not divide {columns}"
    return None


def _bad_value(term: Stored, values: Mapping[str, Array]) -> str | None:
    for name, columns in (("A", term.sizes["in"]), ("B", term.sizes["out"])):
        spare = len(values[name]) * 8 - term.sizes["r"] * columns * int(term.options["bits"])
        if spare and len(values[name]) and int(values[name][-1]) >> (8 - spare):
            return f"{name}: the bits after its last code are not zero"
    return None


SPEC = TermSpec(
    name="lowrank_coded",
    summary="W + B·A, both of whole numbers of a few bits times scales",
    fields={
        "A": stored("a_bytes", dtypes=["U8"]),
        "A_scale": stored("r", "a_groups"),
        "B": stored("b_bytes", dtypes=["U8"]),
        "B_scale": stored("r", "b_groups"),
    },
    effect="additive",
    order=12,
    prepare=_prepare,
    norm=_norm,
    options=(TRANSPOSE, Parameter("bits", "int", 8, "bits of one code", low=2, high=8)),
    misfit=_misfit,
    bad_value=_bad_value,
)
