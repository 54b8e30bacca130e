"""dare_linear: keep random entries of each delta, rescale them, and sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.draws import keep_each_random, random_pieces
from adapterhub.merging.ops.sparsify import RESCALES
from adapterhub.merging.ops.sums import scaled_shares, weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite, Piece, Pieces


@dataclass(frozen=True)
class Parameters:
    """What dare_linear may be told."""

    density: float = parameter(0.5, "share of each patch's entries kept", low=0, high=1, is_low_open=True)
    rescale: str = parameter(
        "inverse",
        "how what is left is brought back to size: by 1/density, by a norm of the tensor, or not",
        choices=RESCALES,
    )
    seed: int = parameter(0, "of the random numbers, which belong to a patch and tensor", low=0, high=2**63 - 1)
    scale: float = parameter(1.0, "λ, the factor on the result")
    normalize: bool = parameter(False, "divide by the sum of the weights")


def dare_linear(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters, site: MergeSite
) -> torch.Tensor:
    """Task vectors of which each entry is kept with probability density, and their weighted sum.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. Which entries are kept
    depends on seed, patch and tensor alone, not on order, device or threads; density 1 keeps all.
    Source: arXiv:2311.03099 sec. 3. Differs: mergekit 0.1.5 rescales by the L1 norm (rescale="l1") and draws masks
    from one global generator.
    """
    kept = keep_each_random(deltas, site, parameters.density, parameters.rescale, parameters.seed)
    return weighted_sum(kept, scaled_shares(weights, parameters.scale, normalize=parameters.normalize))


def by_pieces(pieces: Pieces, weights: Sequence[float], parameters: Parameters) -> Callable[[Piece], torch.Tensor]:
    """The same, some rows at a time."""
    keep = random_pieces(pieces, parameters.density, parameters.rescale, parameters.seed)
    factors = scaled_shares(weights, parameters.scale, normalize=parameters.normalize)
    return lambda piece: weighted_sum(keep(piece), factors)


SPEC = MethodSpec(
    name="dare_linear",
    title="DARE",
    summary="Random entries kept and rescaled, then summed",
    source="arXiv:2311.03099",
    function=dare_linear,
    parameters=Parameters,
    laws=frozenset({"commutative", "neutral_zero"}),
    laws_at={"identity": {"density": 1.0}},
    takes_site=True,
    by_pieces=by_pieces,
)
