"""contrast: what a strong model says more than a weak one, among tokens that the strong one finds plausible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import OperatorSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What contrast may be told."""

    alpha: float = parameter(0.1, "α: plausible is what has at least this share of the likeliest token", low=0, high=1)
    beta: float = parameter(1.0, "β, the factor on the weak model's log probabilities", low=0)
    temperature: float = parameter(1.0, "τ of the weak model", low=0, is_low_open=True)


def contrast(logits: torch.Tensor, weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """log p_strong - β · log p_weak of plausible tokens, -inf of the others.

    logits: (2, vocabulary), of strong and weak; p_weak = softmax(z_weak / τ). Plausible are tokens of
    p_strong ≥ α · max p_strong: all of them at α = 0, the likeliest alone at 1. At β = 0 the strong model's
    distribution, of plausible tokens. Source: arXiv:2210.15097 sec. 3, eqs. 2-4, where β = 1. Differs: β, with which
    the score is that of arXiv:2309.09117 at β / (1 - β) there, up to a factor.
    """
    strong = logits[0].log_softmax(-1)
    weak = (logits[1] / parameters.temperature).log_softmax(-1)
    scores = strong - parameters.beta * weak
    if parameters.alpha == 0:
        return scores
    return scores.masked_fill(strong < strong.max() + math.log(parameters.alpha), -math.inf)


SPEC = OperatorSpec(
    name="contrast",
    title="Contrastive decoding",
    summary="What a strong model says more than a weak one, among plausible tokens",
    source="arXiv:2210.15097",
    function=contrast,
    first="strong",
    others="weak",
    count=(1, 1),
    parameters=Parameters,
)
