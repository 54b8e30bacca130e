"""ensemble: the weighted mean of several models' logits, probabilities or log probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.registry import OperatorSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What ensemble may be told."""

    space: str = parameter("logits", "what is averaged", choices=("logits", "probs", "logprobs"))


def ensemble(logits: torch.Tensor, weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """Σ wᵢ·zᵢ / Σ wᵢ; with probs log(Σ wᵢ·pᵢ / Σ wᵢ), with logprobs Σ wᵢ·log pᵢ / Σ wᵢ normalised.

    logits: (n, vocabulary). One member alone is itself. Logits and log probabilities give one distribution, the
    geometric mean or product of experts; probs the mixture. Weights do not add up to 0, and those of probabilities are
    not negative: `check`.
    """
    shares = logits.new_tensor(weights)[:, None] / math.fsum(weights)  # (n, 1)
    if parameters.space == "logits":
        return (shares * logits).sum(0)
    logprobs = logits.log_softmax(-1)
    if parameters.space == "probs":
        return (shares.log() + logprobs).logsumexp(0)
    return (shares * logprobs).sum(0).log_softmax(-1)


def check(weights: Sequence[float], parameters: Parameters) -> None:
    """Raises InvalidParameter for weights that add up to 0, and for negative ones of probabilities."""
    if abs(math.fsum(weights)) < 1e-8:
        raise InvalidParameter(f"ensemble: the weights {list(weights)} add up to 0, by which they would be divided")
    if parameters.space == "probs" and min(weights) < 0:
        raise InvalidParameter(
            f"ensemble: the weight {min(weights):g} would make a probability negative; with space=logits it may be"
        )


SPEC = OperatorSpec(
    name="ensemble",
    title="Ensemble",
    summary="Weighted mean of several models' logits, probabilities or log probabilities",
    source="Hinton 2002, doi:10.1162/089976602760128018 (products); Jacobs et al. 1991 (mixtures)",
    function=ensemble,
    others="model",
    takes_weights=True,
    parameters=Parameters,
    check=check,
)
