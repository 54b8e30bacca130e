"""eft: emulated fine-tuning, what tuning did to a small model done to a large one; also called up-scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import OperatorSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What eft may be told."""

    beta: float = parameter(1.0, "β, the factor on what tuning did to the small model")


def eft(logits: torch.Tensor, weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """log p_large + β · (log p_tuned - log p_base), normalised: log probabilities.

    logits: (3, vocabulary), of large, base and tuned. At β = 0, and where tuned is base, the large model's
    distribution. Source: arXiv:2310.12962 sec. 3: the reward that tuning of the small model implies, under the large
    one, normalised at each step. Differs: nothing of the paper's top-p filter on the reward, nor its drafting.
    """
    large, base, tuned = logits.log_softmax(-1)
    composed: torch.Tensor = (large + parameters.beta * (tuned - base)).log_softmax(-1)
    return composed


SPEC = OperatorSpec(
    name="eft",
    title="Emulated fine-tuning",
    summary="Up-scale: put what tuning did to a small model on a large one",
    source="arXiv:2310.12962",
    function=eft,
    first="large",
    named=("base",),
    others="tuned",
    count=(1, 1),
    parameters=Parameters,
)
