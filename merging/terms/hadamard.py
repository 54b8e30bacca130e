"""hadamard: W + weight · (w1a·w1b) ⊙ (w2a·w2b), the entrywise product of two low-rank matrices, as LoHa has.

Fields: w1a, w2a (out, r) and w1b, w2b (r, in), any float dtype; a convolution's inputs are in·k·k. With cores t1, t2
(r, r, k, k): w1a, w2a (r, out), w1b, w2b (r, in), and each matrix is Σ t[i, j]·w_a[i]·w_b[j]. No options.
The same delta is low-rank: each pair of ranks is one of r² ranks (the Khatri-Rao products of the factors).
Source: arXiv:2108.06098 prop. 1 and 3 (FedPara); peft `tuners/loha/layer.py`, HadaWeight and HadaWeightCP.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import Factors, inner_product
from adapterhub.merging.ops.tucker import tucker_factors, tucker_sizes
from adapterhub.merging.registry import ELSEWHERE, Apply, Part, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import torch


def _pair(part: Part) -> tuple[Factors, Factors]:
    """The two low-rank matrices, float32, the weight multiplied into the first."""
    first, second = (
        tucker_factors(part.fields[f"w{n}a"], part.fields[f"w{n}b"], part.fields.get(f"t{n}")) for n in (1, 2)
    )
    return Factors(first.left * part.weight, first.right), second


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · (w1a·w1b) ⊙ (w2a·w2b)."""
    pairs = [_pair(part) for part in parts]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for first, second in pairs:
            products = (one.left[start:stop].to(tile.dtype) @ one.right.to(tile.dtype) for one in (first, second))
            tile.addcmul_(*products)

    return apply


def _factors(part: Part, shape: Sequence[int]) -> Factors:
    """Rank r²: left[:, (i, j)] = w1a[:, i]·w2a[:, j], right[(i, j)] = w1b[i]·w2b[j]."""
    first, second = _pair(part)
    left = (first.left[:, :, None] * second.left[:, None, :]).flatten(1)  # (out, r·r)
    right = (first.right[:, None, :] * second.right[None, :, :]).flatten(0, 1)  # (r·r, in)
    return Factors(left, right)


def _factor_sizes(shapes: Mapping[str, Sequence[int]], options: Mapping[str, Any]) -> tuple[int, int, int]:
    first, second = (tucker_sizes(shapes[f"w{n}a"], shapes[f"w{n}b"], shapes.get(f"t{n}")) for n in (1, 2))
    return first[0], first[1] * second[1], first[2]


def _norm(part: Part, shape: Sequence[int]) -> float:
    product = _factors(part, shape)
    return math.sqrt(max(inner_product(product, product), 0.0))


SPEC = TermSpec(
    name="hadamard",
    summary="W plus the entrywise product of two low-rank matrices",
    fields={
        "w1a": stored("out", "r"),
        "w1b": stored("r", "in"),
        "w2a": stored("out", "s"),
        "w2b": stored("s", "in"),
        "t1": ELSEWHERE,
        "t2": ELSEWHERE,
    },
    effect="additive",
    order=12,
    prepare=_prepare,
    norm=_norm,
    factors=_factors,
    factor_sizes=_factor_sizes,
)
