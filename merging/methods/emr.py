"""emr: the model of one task, by its mask and scale of a delta that all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.task_masks import emr_mask, emr_scale, unify
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What emr may be told."""

    task: int = parameter(1, "whose model is made: the first patch's is 1", low=1, high=1000)


def emr(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """s · m ⊙ u: u the elected sign times its largest magnitude, m where task t has that sign, s = Σ|Δₜ| / Σ|m⊙u|.

    deltas: each (…), float32 or float64, not modified; the result is of their shape and dtype. One patch alone comes
    back. Source: arXiv:2405.17461 sec. 3.2 (Elect, Mask & Rescale). Differs: s is one a tensor here, in the paper one
    for the whole model.
    """
    delta, shared = deltas[parameters.task - 1], unify(deltas)
    kept = shared * emr_mask(delta, shared)
    return kept * emr_scale(float(delta.double().abs().sum()), float(kept.double().abs().sum()))


SPEC = MethodSpec(
    name="emr",
    title="EMR-Merging",
    summary="One patch's model, as a mask and a scale of what all patches share",
    source="arXiv:2405.17461",
    function=emr,
    parameters=Parameters,
    laws=frozenset({"identity", "neutral_zero", "idempotent"}),
    takes_weights=False,
    is_experimental=True,
    needed=lambda parameters: int(parameters.task),
)
