"""lowrank: W + weight · diag(b)·B·diag(d)·A, the delta of a LoRA.

Fields: A (r, in) and B (out, r), any float dtype; optionally d (r,) and b (out,), as VeRA has. Convolutions: A (r, in,
k, k), B (out, r, 1, 1), folded as (r, in·k·k). Options: transpose, True where the site stores (in, out): GPT-2's Conv1D
and embeddings, the latter with A = lora_embedding_A (r, tokens) and B = lora_embedding_B (dim, r).

All low-rank terms of a site act in one matrix product of their concatenated factors, so the sum is rounded once.
Source: arXiv:2106.09685 sec. 4.1; rows and columns of a Conv1D: peft `tuners/lora/layer.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import Factors, concatenate, factors_of, inner_product
from adapterhub.merging.registry import TRANSPOSE, Apply, Part, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · B·diag(d)·A, all of them as one matrix product."""
    left, right = concatenate(
        [factors_of(part.fields, part.weight, transpose=bool(part.options.get("transpose"))) for part in parts]
    )

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        tile.addmm_(left[start:stop].to(tile.dtype), right.to(tile.dtype))

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    product = _factors(part)
    return math.sqrt(max(inner_product(product, product), 0.0))


def _factors(part: Part) -> Factors:
    return factors_of(part.fields, part.weight, transpose=bool(part.options.get("transpose")))


def _factor_sizes(shapes: Mapping[str, Sequence[int]], options: Mapping[str, Any]) -> tuple[int, int, int]:
    out, r, fan_in = shapes["B"][0], shapes["A"][0], math.prod(shapes["A"][1:])
    return (fan_in, r, out) if options.get("transpose") else (out, r, fan_in)


SPEC = TermSpec(
    name="lowrank",
    summary="W + B·A, the delta of a LoRA",
    fields={
        "A": stored("r", "in"),
        "B": stored("out", "r"),
        "d": stored("r", is_optional=True),
        "b": stored("out", is_optional=True),
    },
    effect="additive",
    order=10,
    prepare=_prepare,
    norm=_norm,
    factors=lambda part, shape: _factors(part),
    options=(TRANSPOSE,),
    factor_sizes=_factor_sizes,
)
