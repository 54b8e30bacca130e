"""reflect: W · Π (I - 2·u·uᵀ), the inputs mirrored at r planes one after another, as HRA does.

Fields: u (inputs, r), any float dtype, a convolution's inputs being in·k·k; columns of any length but zero, which are
divided by their norm and act from the first to the last. No options.
Source: arXiv:2405.17484; peft `tuners/hra/layer.py`, get_delta_weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.registry import Apply, Part, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part; normals are made in float64."""
    (part,) = parts
    u = part.fields["u"].double()
    normals = (u / u.norm(dim=0)).unbind(1)

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        for wide in normals:
            normal = wide.to(tile.dtype)
            tile.addr_(tile @ normal, normal, alpha=-2.0)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: the change depends on W."""


SPEC = TermSpec(
    name="reflect",
    summary="W with its inputs mirrored at some planes",
    fields={"u": stored("in", "r")},
    effect="affine",
    order=4,
    prepare=_prepare,
    norm=_norm,
)
