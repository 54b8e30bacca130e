"""seeded: W + weight · P·θ with a random P that a seed stands for: an intrinsic-dimension patch.

Fields: theta (d,), any float dtype, usually shared by all sites. Options: seed; key, the parameter's name at training,
which with the seed keys its numbers; projection, "fastfood" or "dense"; dist, "rademacher" or "uniform", of P's random
diagonal or entries; rng, "philox4x32-10"; materialised_sha256, of P·θ as float32, checked where it is given.
The scale of SAID's layer is the term's own.
Source: arXiv:1804.08838 sec. 2 and S7; arXiv:2012.13255 eq. 2 and 3; generators and projections: `merging/ops`.
"""

from __future__ import annotations

import hashlib
from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.ops.philox import Stream
from adapterhub.merging.ops.projections import DISTRIBUTIONS, PROJECTIONS
from adapterhub.merging.registry import Apply, Parameter, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _delta(part: Part, numel: int) -> torch.Tensor:
    """P·θ as float32 (numel,), on the device of θ. Raises NotFoldable where its digest is not the stored one."""
    import torch

    options = part.options
    theta = part.fields["theta"]
    project = PROJECTIONS[options.get("projection", "fastfood")]
    stream = Stream.of(int(options["seed"]), str(options["key"]))
    delta = project(theta.double().cpu().numpy(), numel, stream, options.get("dist", "rademacher"))
    expected, found = options.get("materialised_sha256"), hashlib.sha256(delta.astype("<f4").tobytes()).hexdigest()
    if expected and expected != found:
        raise NotFoldable(f"{options['key']}: the seed gives a delta of sha256 {found}; the patch says {expected}")
    return torch.from_numpy(delta).to(theta.device)


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of adding each projection, which is made whole."""
    deltas = [(_delta(part, W.numel()), part.weight) for part in parts]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for delta, weight in deltas:
            rows = delta[start * tile.shape[1] : stop * tile.shape[1]].view(tile.shape)
            tile.add_(rows.to(tile.dtype), alpha=weight)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    return float(_delta(part, prod(shape)).double().norm()) * abs(part.weight)


def _misfit(term: Stored) -> str | None:
    missing = [name for name in ("seed", "key") if name not in term.options]
    return f"has no {missing[0]}, which its numbers are drawn from" if missing else None


SPEC = TermSpec(
    name="seeded",
    summary="W plus a random projection of a few numbers, stored as a seed",
    fields={"theta": stored("d")},
    effect="additive",
    order=45,
    prepare=_prepare,
    norm=_norm,
    options=(
        Parameter("seed", "int", 0, "seed of the projection", low=0, high=2**63 - 1),
        Parameter("key", "str", "", "the parameter's name at training"),
        Parameter("projection", "str", "fastfood", "how P is made", choices=tuple(PROJECTIONS)),
        Parameter("dist", "str", "rademacher", "distribution of P's numbers", choices=DISTRIBUTIONS),
        Parameter("rng", "str", "philox4x32-10", "generator", choices=("philox4x32-10",)),
        Parameter("materialised_sha256", "str", "", "of the projected numbers as float32"),
    ),
    misfit=_misfit,
)
