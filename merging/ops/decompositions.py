"""Low-rank parts of a weight that adapters take out of their base before training, as factors A (r, in), B (out, r).

W: (out, in), float32, not modified. All in float32 by LAPACK, as peft does it: where singular values lie close together
the outcome depends on the precision, and what was trained fits the one that was taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def principal(W: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of which scaling · B @ A is the sum of W's r largest singular components.

    Source: arXiv:2404.02948 eq. 2 and 3; peft 0.21 `tuners/lora/layer.py`, pissa_init.
    """
    import torch

    u, s, vh = torch.linalg.svd(W, full_matrices=False)
    root = (s[:r] / scaling).sqrt()
    return torch.diag(root) @ vh[:r], u[:, :r] @ torch.diag(root)


def orthonormal(W: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors A, the first r rows of R, and B, the first r columns of Q, of W = Q R; scaling plays no part.

    Source: arXiv:2406.01775 alg. 1; peft 0.21 `tuners/lora/layer.py`, olora_init.
    """
    import torch

    q, upper = torch.linalg.qr(W)
    return upper[:r], q[:, :r]


def minor(W: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of which scaling · B @ A is the sum of W's r smallest singular components.

    Source: arXiv:2412.06071 sec. 3.1; peft 0.21 `tuners/lora/variants.py`, KasaLinearVariant.
    """
    import torch

    u, s, vh = torch.linalg.svd(W, full_matrices=False)
    first = len(s) - r
    return vh[first:], u[:, first:] * (s[first:] / scaling)
