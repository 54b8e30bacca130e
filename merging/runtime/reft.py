"""reft: h + Rᵀ(W h + b − R h) on the outputs of some modules, everywhere or at the ends of the prompt.

Source: arXiv:2404.03592 eq. 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging.live_modules import Call, Edit, attach_edits
from adapterhub.merging.native_runtime import RuntimePatch
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.representations import REFT

if TYPE_CHECKING:
    import torch


def _edit(patch: RuntimePatch, fields: Mapping[str, torch.Tensor], module: Any, call: Call) -> Edit:
    """Rᵀ(W h + b − R h) where the positions are chosen."""
    R, W, b = fields["R"], fields["W"], fields["b"]
    options = patch.options

    def edit(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        h = h.to(R.dtype)
        added = (h @ W.T + b - h @ R.T) @ R
        if options["positions"] == "all":
            return added
        return added * _chosen(h, call, options["first"], options["last"])[..., None]

    return edit


def _chosen(h: torch.Tensor, call: Call, first: int, last: int) -> torch.Tensor:
    """Which positions (batch, tokens) are among the first or last of the prompt, padding not counted."""
    import torch

    if call.is_continued:
        return torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    mask = torch.ones(h.shape[:2], device=h.device) if call.mask is None else call.mask.to(h.device)
    places = mask.cumsum(1)  # 1 at the first token that is no padding
    lengths = mask.sum(1, keepdim=True)
    chosen: torch.Tensor = (mask > 0) & ((places <= first) | (places > lengths - last))
    return chosen


SPEC = RuntimeSpec(
    name="reft",
    summary="A low-rank edit of hidden states at chosen positions",
    source="arXiv:2404.03592 eq. 2",
    attach=attach_edits(REFT, _edit, widths={"R": 1}, has_weight=True),
)
