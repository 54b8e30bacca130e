"""della: keep entries of each delta at random, large ones likelier, rescale, and average those of the elected sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.agreement import elected, elected_by_pieces
from adapterhub.merging.ops.draws import check_probabilities, keep_each_likely, likely_pieces
from adapterhub.merging.ops.signs import TIES
from adapterhub.merging.ops.sparsify import RESCALES
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite, Piece, Pieces


@dataclass(frozen=True)
class Parameters:
    """What della may be told."""

    density: float = parameter(0.5, "mean share of each patch's entries kept", low=0, high=1, is_low_open=True)
    epsilon: float = parameter(0.15, "how much likelier large entries are kept, and less small ones", low=0, high=0.5)
    rescale: str = parameter(
        "inverse",
        "how what is left is brought back to size: each by 1/its probability, by a norm of the tensor, or not",
        choices=RESCALES,
    )
    seed: int = parameter(0, "of the random numbers, which belong to a patch and tensor", low=0, high=2**63 - 1)
    scale: float = parameter(1.0, "λ, the factor on the result")
    normalize: bool = parameter(True, "divide by the sum of the weights of those that agree")
    elect: str = parameter(
        "weighted", "whether signs are elected on deltas times weights", choices=("weighted", "unweighted")
    )
    tie: str = parameter(
        "positive", "the sign that a sum of 0 elects: positive, or that of most of the tensor", choices=TIES
    )


def check(parameters: Parameters) -> None:
    """Raises InvalidParameter unless density ± epsilon lies between 0 and 1."""
    check_probabilities("della", parameters.density, parameters.epsilon)


def della(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """Task vectors pruned by MagPrune, merged where their signs agree.

    Of each row an entry stays with a probability that goes by its rank from density - epsilon to density + epsilon.
    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. A row of one entry has
    the density itself; which stay depends on seed, patch and tensor alone. Raises InvalidParameter as `check`.
    Source: arXiv:2406.11617 sec. 3. Differs: mergekit 0.1.5 rescales by the L1 norm (rescale="l1"), and fails on rows
    of one entry.
    """
    check(parameters)
    kept = keep_each_likely(deltas, site, parameters.density, parameters.epsilon, parameters.rescale, parameters.seed)
    return elected(kept, weights, parameters)


def by_pieces(pieces: Pieces, weights: Sequence[float], parameters: Parameters) -> Callable[[Piece], torch.Tensor]:
    """The same, some rows at a time."""
    check(parameters)
    return elected_by_pieces(
        pieces,
        weights,
        parameters,
        lambda: likely_pieces(pieces, parameters.density, parameters.epsilon, parameters.rescale, parameters.seed),
    )


SPEC = MethodSpec(
    name="della",
    title="DELLA",
    summary="Entries kept at random, large ones likelier; those of the elected sign averaged",
    source="arXiv:2406.11617",
    function=della,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"density": 1.0}},
    takes_site=True,
    check=check,
    by_pieces=by_pieces,
)
