"""kron: W + weight · w1 ⊗ w2, a Kronecker product, as LoKr has.

Fields: w1 (a, b), or its factors w1a (a, r) and w1b (r, b); w2 (c, d), a convolution's (c, d, k, k) or (c, d·k·k), or
its factors w2a (c, r) and w2b (r, d·k·k), or with a core t2 (r, r, k, k) those of `ops.tucker`. W is (a·c, b·d·k·k).
Options: is_padded, True for a w2 of (c, d, k) that peft gives to torch.kron as it is: then w1 counts as (1, a, b), and
W is the reshaped product (c, a·d, b·k).
A factor of few rows or columns is its own low-rank form, so the same delta always has factors too.
Source: arXiv:2108.06098; arXiv:2309.14859 (LoKr); peft `tuners/lokr/layer.py`, make_kron.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import Factors
from adapterhub.merging.ops.tucker import tucker_factors, tucker_sizes
from adapterhub.merging.registry import ELSEWHERE, Apply, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import torch


def _side(part: Part, name: str) -> torch.Tensor | Factors:
    """One side of the product in float32: a matrix (w2's inputs and kernel as one), or the factors of one."""
    if name in part.fields:
        return part.fields[name].float().flatten(1)
    core = part.fields.get("t2") if name == "w2" else None
    return tucker_factors(part.fields[name + "a"], part.fields[name + "b"], core)


def _whole(side: torch.Tensor | Factors) -> torch.Tensor:
    return side.left @ side.right if isinstance(side, Factors) else side


def _padded(part: Part, rows: int) -> torch.Tensor:
    """The delta as a matrix where a three-dimensional w2 met a w1 of two dimensions."""
    import torch

    return torch.kron(_whole(_side(part, "w1")), part.fields["w2"].float()).reshape(rows, -1) * part.weight


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · w1 ⊗ w2; the product is made a tile at a time."""
    import torch

    padded = [_padded(part, W.shape[0]) for part in parts if part.options.get("is_padded")]
    plain = [part for part in parts if not part.options.get("is_padded")]
    sides = [(_whole(_side(part, "w1")) * part.weight, _whole(_side(part, "w2"))) for part in plain]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for delta in padded:
            tile.add_(delta[start:stop].to(tile.dtype))
        rows = torch.arange(start, stop, device=tile.device)
        for w1, w2 in sides:
            left = w1[rows // w2.shape[0]].to(tile.dtype)  # (rows, b)
            right = w2[rows % w2.shape[0]].to(tile.dtype)  # (rows, d·k·k)
            tile.view(len(rows), w1.shape[1], -1).addcmul_(left[:, :, None], right[:, None, :])

    return apply


def _thin(side: torch.Tensor | Factors) -> Factors:
    """The side as factors: a whole matrix by an identity on its shorter edge."""
    import torch

    if isinstance(side, Factors):
        return side
    if side.shape[0] <= side.shape[1]:
        return Factors(torch.eye(side.shape[0], device=side.device), side)
    return Factors(side, torch.eye(side.shape[1], device=side.device))


def _factors(part: Part, shape: Sequence[int]) -> Factors:
    """(l1·r1) ⊗ (l2·r2) = (l1 ⊗ l2)·(r1 ⊗ r2)."""
    import torch

    if part.options.get("is_padded"):
        return _thin(_padded(part, shape[0]))
    first, second = _thin(_side(part, "w1")), _thin(_side(part, "w2"))
    return Factors(torch.kron(first.left, second.left) * part.weight, torch.kron(first.right, second.right))


def _factor_sizes(shapes: Mapping[str, Sequence[int]], options: Mapping[str, Any]) -> tuple[int, int, int]:
    if options.get("is_padded"):
        rows, _, columns = _side_sizes(shapes, "w1")
        out, numel = options["shape"][0], rows * columns * prod(shapes["w2"])
        return out, min(out, numel // out), numel // out
    first, second = _side_sizes(shapes, "w1"), _side_sizes(shapes, "w2")
    return first[0] * second[0], first[1] * second[1], first[2] * second[2]


def _side_sizes(shapes: Mapping[str, Sequence[int]], name: str) -> tuple[int, int, int]:
    """(n, r, m) of what `_thin` makes of one side."""
    if name not in shapes:
        return tucker_sizes(shapes[name + "a"], shapes[name + "b"], shapes.get("t2") if name == "w2" else None)
    rows, columns = shapes[name][0], prod(shapes[name][1:])
    return rows, min(rows, columns), columns


def _norm(part: Part, shape: Sequence[int]) -> float:
    first, second = (_whole(_side(part, name)).double().norm() for name in ("w1", "w2"))
    return float(first * second) * abs(part.weight)


def _misfit(term: Stored) -> str | None:
    """Each side is one matrix or two factors, and the product has W's shape."""
    for side in ("w1", "w2"):
        forms = {name for name in term.fields if name.startswith(side)}
        if forms not in ({side}, {side + "a", side + "b"}):
            return f"has the fields {sorted(forms)} for {side}; {side} alone, or {side}a and {side}b are expected"
    a, b, c, d = (term.sizes[name] for name in "abcd")
    out, fan_in = term.sizes["out"], term.sizes["in"]
    return None if (a * c, b * d) == (out, fan_in) else f"w1 ⊗ w2 is {(a * c, b * d)}; {(out, fan_in)} is expected"


SPEC = TermSpec(
    name="kron",
    summary="W plus a Kronecker product",
    fields={
        "w1": stored("a", "b", is_optional=True),
        "w1a": stored("a", "r1", is_optional=True),
        "w1b": stored("r1", "b", is_optional=True),
        "w2": stored("c", "d", is_optional=True),
        "w2a": stored("c", "r2", is_optional=True),
        "w2b": stored("r2", "d", is_optional=True),
        "t2": ELSEWHERE,
    },
    effect="additive",
    order=14,
    prepare=_prepare,
    norm=_norm,
    factors=_factors,
    misfit=_misfit,
    factor_sizes=_factor_sizes,
)
