"""Dominant directions of large matrices, and how far two sets of directions coincide."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def left_directions(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """An orthonormal basis (n, k) of about the `count` largest left singular directions of (n, m), in float32.

    k = min(count, n, m). Small matrices by an exact SVD; large ones by subspace iteration with four passes and eight
    spare directions from a fixed start, so equal matrices give equal answers. Source: arXiv:0909.4061 alg. 4.4.
    """
    import torch

    rows, columns = matrix.shape
    k = min(count, rows, columns)
    if min(rows, columns) <= 256:
        u, _, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
        few: torch.Tensor = u[:, :k].float()
        return few
    M = matrix.float()
    start = torch.randn((columns, k + 8), generator=torch.Generator().manual_seed(0)).to(M.device)
    q, _ = torch.linalg.qr(M @ start)
    for _ in range(4):
        p, _ = torch.linalg.qr(M.T @ q)
        q, _ = torch.linalg.qr(M @ p)
    u, _, _ = torch.linalg.svd(q.T @ M, full_matrices=False)
    directions: torch.Tensor = q @ u[:, :k]
    return directions


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """How much of the subspace a (n, k) lies in the subspace b (n, l), both orthonormal: ‖aᵀb‖²/k, in [0, 1]."""
    return float((a.double().T @ b.double()).square().sum()) / a.shape[1]


def chance_overlap(rows: int, count: int) -> float:
    """The overlap that a fixed subspace has on average with a random one of `count` dimensions out of `rows`."""
    return min(1.0, count / rows)
