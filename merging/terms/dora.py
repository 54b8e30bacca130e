"""dora: (mag / ‖W + Δ‖) ⊙ (W + Δ) with Δ = scaling · B·A and norms over each output: direction and magnitude apart.

Fields: A (r, in) and B (out, r), mag (out,), any float dtype; convolutions as in `lowrank`, mag of any shape with one
entry an output. Options: scaling, alpha / r of the LoRA; transpose, True where the site stores (in, out): GPT-2's
Conv1D, and embeddings, whose magnitudes are of the columns.
The norms are of the base's own values, whatever acted on the site before: what was trained fits those alone.
Source: arXiv:2402.09353 eq. 5; peft `tuners/lora/dora.py`, get_weight_norm; `variants.py`, merge_safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import factors_of
from adapterhub.merging.ops.tensors import as_matrix
from adapterhub.merging.registry import TRANSPOSE, Apply, Parameter, Part, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_ROWS = 1024
"""Rows whose sum with the delta is in memory at once while norms are taken."""


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part. The norms are taken here, in float64 over blocks of rows."""
    import torch

    (part,) = parts
    is_transposed = bool(part.options.get("transpose"))
    left, right = factors_of(part.fields, float(part.options["scaling"]), transpose=is_transposed)
    rows = as_matrix(W)
    blocks = [slice(start, start + _ROWS) for start in range(0, rows.shape[0], _ROWS)]
    squares = [(rows[one].float().addmm(left[one], right)).double().square() for one in blocks]
    if is_transposed:
        norms = torch.stack([one.sum(0) for one in squares]).sum(0).sqrt()  # of each column
    else:
        norms = torch.cat([one.sum(1) for one in squares]).sqrt().unsqueeze(1)  # of each row
    factor = part.fields["mag"].double().flatten().view(norms.shape) / norms

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        tile.addmm_(left[start:stop].to(tile.dtype), right.to(tile.dtype))
        tile.mul_((factor if is_transposed else factor[start:stop]).to(tile.dtype))

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: the change depends on W."""


SPEC = TermSpec(
    name="dora",
    summary="W + B·A with each output brought to a stored magnitude",
    fields={"A": stored("r", "in"), "B": stored("out", "r"), "mag": stored("out")},
    effect="affine",
    order=6,
    prepare=_prepare,
    norm=_norm,
    options=(TRANSPOSE, Parameter("scaling", "float", 1.0, "alpha / r of the LoRA")),
)
