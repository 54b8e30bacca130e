"""ties: trim each delta, elect a sign for every entry, and average the deltas that agree with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.agreement import elected, elected_by_pieces
from adapterhub.merging.ops.selection import largest
from adapterhub.merging.ops.signs import TIES
from adapterhub.merging.ops.sparsify import keep_largest, kept_count
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import Piece, Pieces


@dataclass(frozen=True)
class Parameters:
    """What ties may be told."""

    density: float = parameter(1.0, "fraction of each patch's entries kept", low=0, high=1, is_low_open=True)
    scope: str = parameter(
        "tensor", "whether shares are of each tensor or of the whole patch", choices=("tensor", "global")
    )
    scale: float = parameter(1.0, "λ, the factor on the result")
    normalize: str = parameter(
        "weights",
        "what agreeing entries are divided by: the sum of their weights, their number, or nothing",
        choices=("weights", "count", "none"),
    )
    elect: str = parameter(
        "weighted", "whether signs are elected on deltas times weights", choices=("weighted", "unweighted")
    )
    tie: str = parameter(
        "positive", "the sign that a sum of 0 elects: positive, or that of most of the tensor", choices=TIES
    )


def ties(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Task vectors merged by TIES: trim, elect a sign for every entry, average those that agree.

    Δ = λ · Σ agreeing wᵢ·Δᵢ / Σ agreeing wᵢ.

    deltas: each of one shape and dtype (float32, or float64), at least one; not modified; the result has both. At
    least one entry of a delta is kept at any density. A sum of exactly 0 elects the positive sign; an entry where no
    delta agrees, or whose weights cancel, is 0 or is left undivided, as in mergekit.
    Source: arXiv:2306.01708 sec. 3. Differs from the paper, like mergekit 0.1.5: trimmed per tensor, signs elected on
    the weighted deltas, divided by weights; normalize="count", elect="unweighted" and tie="majority" give the
    paper's choices.
    """
    trimmed = [keep_largest(delta, parameters.density) for delta in deltas]
    return elected(trimmed, weights, parameters)


def by_pieces(pieces: Pieces, weights: Sequence[float], parameters: Parameters) -> Callable[[Piece], torch.Tensor]:
    """The same, some rows at a time."""
    return elected_by_pieces(pieces, weights, parameters, lambda: largest(pieces, len(weights), parameters.density))


def global_counts(parameters: Parameters, numel: int) -> list[int]:
    """How many of a whole patch's entries are its largest, where shares are of the patch."""
    return [kept_count(numel, parameters.density)] if parameters.scope == "global" else []


SPEC = MethodSpec(
    name="ties",
    title="TIES",
    summary="Trim, elect signs, average the patches that agree",
    source="arXiv:2306.01708",
    function=ties,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"density": 1.0}, "idempotent": {"density": 1.0}},
    by_pieces=by_pieces,
    global_counts=global_counts,
)
