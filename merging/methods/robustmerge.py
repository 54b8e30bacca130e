"""robustmerge: the largest entries of A and B of LoRAs, the directions that lost most of theirs scaled up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import Factors
from adapterhub.merging.ops.sparsify import kept_count, largest
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.ops.lowrank import Trained


@dataclass(frozen=True)
class Parameters:
    """What robustmerge may be told."""

    density: float = parameter(
        0.2, "share of the entries of each A and of each B that is kept", low=0, high=1, is_low_open=True
    )
    floor: float = parameter(
        0.8, "where in the order of a patch's factors on its directions the least one is", low=0, high=1
    )
    scale: float = parameter(2.0, "the factor on A, and on B")


def robustmerge(loras: Sequence[Trained | None], weights: Sequence[float], parameters: Parameters) -> Factors:
    """λ · Σ sᵢ·B'ᵢ / Σ sᵢ @ λ · Σ A'ᵢ, of the largest entries of A and B; s = Σ|row of A| / Σ|row of A'| by direction.

    s is raised to its value at `floor` of a LoRA's directions in ascending order; a direction of which nothing was kept
    counts with 1. loras: at each site one LoRA an input, or None where it changes nothing, all of one rank; not
    modified. A, B and the result are float64; scalings go into A. Depends on how each product is divided into A and B.
    Source: arXiv:2502.17159 sec. 4 and its published code. Differs: there entries equal to the threshold stay, one more
    than the share says, and all scalings are the first one's.
    """
    import torch

    total_A, total_B, total_s = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for one in loras:
        if one is None:
            continue
        A, B = _kept(one.A, parameters.density), _kept(one.B, parameters.density)
        s = _raised(one.A.abs().sum(1) / A.abs().sum(1), parameters.floor)
        total_A = total_A + A * one.scaling
        total_B, total_s = total_B + s * B, total_s + s
    return Factors(parameters.scale * total_B / total_s, parameters.scale * total_A)


def _kept(factor: torch.Tensor, density: float) -> torch.Tensor:
    return factor * largest(factor.abs(), kept_count(factor.numel(), density))


def _raised(ratios: torch.Tensor, floor: float) -> torch.Tensor:
    """The ratios (r,), infinite ones and 0/0 as 1, none below the one at that share of their order."""
    import torch

    if not len(ratios):
        return ratios
    finite = torch.where(ratios.isfinite(), ratios, torch.ones_like(ratios))
    ordered = finite.sort().values
    return finite.clamp_min(float(ordered[min(int(len(ordered) * floor), len(ordered) - 1)]))


SPEC = MethodSpec(
    name="robustmerge",
    title="RobustMerge",
    summary="The largest entries of A and B of LoRAs, directions that lost most scaled up",
    source="arXiv:2502.17159",
    function=robustmerge,
    parameters=Parameters,
    laws=frozenset({"commutative"}),
    takes_weights=False,
    takes_trained=True,
    is_experimental=True,
)
