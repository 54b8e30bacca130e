"""What quantising a weight takes from it, by the formats' own formulas: W - dequant(quant(W)), in float32.

Adapters trained on a quantised base were trained on these rounded weights; how large the difference is beside their
delta says how much of them is about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution with an exact zero. Source: arXiv:2305.14314 appendix E."""

_ROWS = 1024
"""Rows done at once: a multiple of every format's block in either direction."""


def _nf4(rows: torch.Tensor) -> torch.Tensor:
    """Blocks of 64 entries, row-major, each by its largest magnitude. Source: arXiv:2305.14314 sec. 3."""
    import torch

    code = torch.tensor(NF4, device=rows.device)
    flat = rows.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 64)).view(-1, 64)
    absmax = padded.abs().amax(1, keepdim=True)
    scaled = padded / absmax.clamp_min(torch.finfo(torch.float32).tiny)
    nearest = code[torch.bucketize(scaled, (code[1:] + code[:-1]) / 2)]
    return (nearest * absmax).view(-1)[: flat.numel()].view(rows.shape)


def _int8(rows: torch.Tensor) -> torch.Tensor:
    """Each row by its largest magnitude to -127..127. Source: arXiv:2208.07339 sec. 3, without its outlier columns."""
    absmax = rows.abs().amax(1, keepdim=True)
    scale = absmax / 127
    return (rows / scale.where(scale > 0, 1.0)).round() * scale


def _fp8(rows: torch.Tensor) -> torch.Tensor:
    """Blocks of 128 x 128 by their largest magnitude to 448, as e4m3. Source: arXiv:2412.19437 sec. 3.3.2."""
    import torch

    n, m = rows.shape
    padded = torch.nn.functional.pad(rows, (0, -m % 128, 0, -n % 128))
    blocks = padded.view(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    absmax = blocks.abs().amax((1, 3), keepdim=True)
    scale = (absmax / 448).where(absmax > 0, 1.0)
    rounded = (blocks / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.view(padded.shape)[:n, :m]


FORMATS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"nf4": _nf4, "int8": _int8, "fp8": _fp8}
"""By name as `TrainingBase.quantisation` says it: a matrix of whole blocks in float32 -> what its stored form means."""


def quantisation_error(matrix: torch.Tensor, quantisation: str) -> float:
    """‖W - dequant(quant(W))‖ in Frobenius norm of a matrix (n, m) of any float dtype, in bounded memory.

    Raises KeyError for a format that is not in FORMATS.
    """
    if not matrix.numel():
        return 0.0
    total = 0.0
    for start in range(0, matrix.shape[0], _ROWS):
        rows = matrix[start : start + _ROWS].float()
        total += float((rows - FORMATS[quantisation](rows)).double().square().sum())
    return math.sqrt(total)
