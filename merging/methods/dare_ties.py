"""dare_ties: keep random entries of each delta, rescale them, and sum those of the elected sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.agreement import elected, elected_by_pieces
from adapterhub.merging.ops.draws import keep_each_random, random_pieces
from adapterhub.merging.ops.signs import TIES
from adapterhub.merging.ops.sparsify import RESCALES
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite, Piece, Pieces


@dataclass(frozen=True)
class Parameters:
    """What dare_ties may be told."""

    density: float = parameter(0.5, "share of each patch's entries kept", low=0, high=1, is_low_open=True)
    rescale: str = parameter(
        "inverse",
        "how what is left is brought back to size: by 1/density, by a norm of the tensor, or not",
        choices=RESCALES,
    )
    seed: int = parameter(0, "of the random numbers, which belong to a patch and tensor", low=0, high=2**63 - 1)
    scale: float = parameter(1.0, "λ, the factor on the result")
    normalize: bool = parameter(False, "divide by the sum of the weights of those that agree")
    elect: str = parameter(
        "weighted", "whether signs are elected on deltas times weights", choices=("weighted", "unweighted")
    )
    tie: str = parameter(
        "positive", "the sign that a sum of 0 elects: positive, or that of most of the tensor", choices=TIES
    )


def dare_ties(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """Task vectors of which each entry is kept with probability density, merged where their signs agree.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. Which entries are kept
    depends on seed, patch and tensor alone, not on order, device or threads; density 1 keeps all.
    Source: arXiv:2311.03099 sec. 3 and arXiv:2306.01708 sec. 3. Differs: mergekit 0.1.5 rescales by the L1 norm
    (rescale="l1") and draws masks from one global generator.
    """
    kept = keep_each_random(deltas, site, parameters.density, parameters.rescale, parameters.seed)
    return elected(kept, weights, parameters)


def by_pieces(pieces: Pieces, weights: Sequence[float], parameters: Parameters) -> Callable[[Piece], torch.Tensor]:
    """The same, some rows at a time."""
    return elected_by_pieces(
        pieces,
        weights,
        parameters,
        lambda: random_pieces(pieces, parameters.density, parameters.rescale, parameters.seed),
    )


SPEC = MethodSpec(
    name="dare_ties",
    title="DARE-TIES",
    summary="Random entries kept and rescaled; those of the elected sign summed",
    source="arXiv:2311.03099",
    function=dare_ties,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"density": 1.0}},
    takes_site=True,
    by_pieces=by_pieces,
)
