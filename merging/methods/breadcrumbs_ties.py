"""breadcrumbs_ties: leave out the largest and the smallest entries of each delta, and sum those of the elected sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.agreement import elected, elected_by_pieces
from adapterhub.merging.ops.selection import middle
from adapterhub.merging.ops.signs import TIES
from adapterhub.merging.ops.sparsify import keep_middle, middle_counts
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import Piece, Pieces


@dataclass(frozen=True)
class Parameters:
    """What breadcrumbs_ties may be told."""

    density: float = parameter(0.9, "share of each patch's entries kept", low=0, high=1, is_low_open=True)
    gamma: float = parameter(0.01, "share of the largest entries left out", low=0, high=1, is_high_open=True)
    scope: str = parameter(
        "tensor", "whether shares are of each tensor or of the whole patch", choices=("tensor", "global")
    )
    scale: float = parameter(1.0, "λ, the factor on the result")
    normalize: bool = parameter(False, "divide by the sum of the weights of those that agree")
    elect: str = parameter(
        "weighted", "whether signs are elected on deltas times weights", choices=("weighted", "unweighted")
    )
    tie: str = parameter(
        "positive", "the sign that a sum of 0 elects: positive, or that of most of the tensor", choices=TIES
    )


def breadcrumbs_ties(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Task vectors without their outliers and their smallest entries, merged where their signs agree.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. Trimmed per tensor;
    density 1 keeps all, outliers too.
    Source: arXiv:2312.06795 sec. 3. Differs from the paper, like mergekit 0.1.5: shares are of a tensor, not a layer.
    """
    kept = [keep_middle(delta, parameters.density, parameters.gamma) for delta in deltas]
    return elected(kept, weights, parameters)


def by_pieces(pieces: Pieces, weights: Sequence[float], parameters: Parameters) -> Callable[[Piece], torch.Tensor]:
    """The same, some rows at a time."""
    return elected_by_pieces(
        pieces,
        weights,
        parameters,
        lambda: middle(pieces, len(weights), parameters.density, parameters.gamma),
    )


def global_counts(parameters: Parameters, numel: int) -> list[int]:
    """How many of a whole patch's entries are its largest, where shares are of the patch."""
    kept, larger = middle_counts(numel, parameters.density, parameters.gamma)
    return [larger + kept, larger] if parameters.scope == "global" else []


SPEC = MethodSpec(
    name="breadcrumbs_ties",
    title="Breadcrumbs-TIES",
    summary="Largest and smallest entries left out; those of the elected sign summed",
    source="arXiv:2312.06795",
    function=breadcrumbs_ties,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"density": 1.0}},
    by_pieces=by_pieces,
    global_counts=global_counts,
)
