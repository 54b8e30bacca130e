"""fusion: a large model steered by small experts, by as much at each step as the experts were by their tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.registry import OperatorSpec, parameter

if TYPE_CHECKING:
    import torch

SWEEPS = 10
"""Most times that each of several experts' factors is searched at one step."""


@dataclass(frozen=True)
class Parameters:
    """What fusion may be told."""

    most: float = parameter(2.0, "largest α that is tried", low=0, high=4)
    step: float = parameter(0.1, "distance between those that are tried", low=0.05, high=1)


def fusion(logits: torch.Tensor, weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """z_large + Σ αᵢ·(z_expertᵢ - z_base), α as `factors` finds them at this step.

    logits: (2 + n, vocabulary), of large, base and n experts. Where each expert is the base, the large model's logits.
    Source: arXiv:2406.15480 sec. 3.
    """
    shifts = logits[2:] - logits[1]  # (n, vocabulary)
    composed: torch.Tensor = logits[0] + factors(logits, parameters) @ shifts
    return composed


def factors(logits: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """α of each expert, (n,), from the grid 0, step, ... most.

    With P̃ = softmax(z_large + Σ αᵢ·(zᵢ - z_base)), one expert's is that of the least
    (KL(P̃‖P_large) - KL(P_expert‖P_base))², the smallest of equals: the large model moves as far as the small one did.
    Several experts' are sought together, from 1/n of what each would have alone: α of one after the other is set to
    the least of Σᵢ (KL(P̃‖P_large) - KL(Pᵢ‖P_base))² + (KL(P_large‖P̃) - KL(P_base‖Pᵢ))² with the others held, until
    none changes, at most SWEEPS times. Differs from the paper, which gives the sum to SLSQP: on the grid it is exact
    in each direction, needs no derivative, and gives equal factors for equal logits.
    """
    import torch

    grid = torch.arange(round(parameters.most / parameters.step) + 1).to(logits) * parameters.step  # (k,)
    large, base = logits[0].log_softmax(-1), logits[1].log_softmax(-1)
    experts = logits[2:].log_softmax(-1)
    shifts = experts - base  # (n, vocabulary), up to a constant that softmax takes out
    forth, back = _kl(experts, base), _kl(base, experts)  # (n,)
    distances = [_distances(large, large, grid, shift)[0] for shift in shifts]
    best = [_first_least((found - wanted).square()) for found, wanted in zip(distances, forth, strict=True)]
    alone = grid[best]
    if len(alone) == 1:
        return alone
    nearest = (alone / len(alone) / parameters.step).round() * parameters.step
    return _together(nearest, grid, large, shifts, forth, back)


def _together(
    alphas: torch.Tensor,
    grid: torch.Tensor,
    large: torch.Tensor,
    shifts: torch.Tensor,
    forth: torch.Tensor,
    back: torch.Tensor,
) -> torch.Tensor:
    """Factors such that changing one alone makes nothing better, where SWEEPS suffice."""
    for _ in range(SWEEPS):
        before = alphas.clone()
        for number, shift in enumerate(shifts):
            others = alphas.clone()
            others[number] = 0
            to_large, from_large = _distances(large + others @ shifts, large, grid, shift)
            misses = (to_large[:, None] - forth).square() + (from_large[:, None] - back).square()
            alphas = others
            alphas[number] = grid[_first_least(misses.sum(-1))]
        if bool((alphas == before).all()):
            break
    return alphas


def _distances(
    start: torch.Tensor, large: torch.Tensor, grid: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(P̃‖P_large) and KL(P_large‖P̃) at each factor, (k,) both, of P̃ = softmax(start + α·shift).

    large: log probabilities. With log Z both are means of what is added, so one exponential of each number suffices.
    """
    moved = start + grid[:, None] * shift  # (k, vocabulary)
    top = moved.amax(-1)
    masses = (moved - top[:, None]).exp_()
    total = masses.sum(-1)
    log_z, added, p = top + total.log(), start - large, large.exp()
    forth = (masses @ added + grid * (masses @ shift)) / total - log_z
    return forth, log_z - p @ added - grid * (p @ shift)


def _kl(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """KL(left‖right) of log probabilities, over the last dimension."""
    return (left.exp() * (left - right)).sum(-1)


def _first_least(values: torch.Tensor) -> int:
    """Where the least value is, the first of equals."""
    return int((values == values.min()).nonzero()[0])


SPEC = OperatorSpec(
    name="fusion",
    title="Dynamic logit fusion",
    summary="Steer a large model by small experts, by a factor found anew at each step",
    source="arXiv:2406.15480",
    function=fusion,
    first="large",
    named=("base",),
    others="expert",
    parameters=Parameters,
)
