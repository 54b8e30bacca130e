"""replace: W + weight · (value - W); with weight 1 the value itself, exactly.

Fields: value, the shape of W, any float dtype. A weight k interpolates from the base (0) to the value (1). Acts before
all other terms. Where several replace one site, each counts as its delta against the base.
Options: reinitialised, True where the parameter was drawn anew before training, as re-initialised top layers and new
heads are: value - W then means nothing on another base, so the value ports and converts whole or not at all.
Source: peft's modules_to_save and LN tuning store values, not deltas; re-initialised layers: arXiv:2006.05987 sec. 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.values import put
from adapterhub.merging.registry import Apply, Parameter, Part, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of W + weight · (value - W); a single weight of 1 copies the value."""
    return put([part.fields["value"] for part in parts], [part.weight for part in parts])


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: how far a value is from W cannot be told without W."""


SPEC = TermSpec(
    name="replace",
    summary="A stored value instead of W",
    fields={"value": stored("W")},
    effect="replace",
    order=0,
    prepare=_prepare,
    norm=_norm,
    options=(Parameter("reinitialised", "bool", False, "whether W was drawn anew before training"),),
)
