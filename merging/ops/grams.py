"""Symmetric matrices as their upper triangles, and solving with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def triangle(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangle of a matrix (n, n) row by row, the diagonal with it: (n(n+1)/2,), dtype kept."""
    import torch

    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def symmetric(packed: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix (n, n) of a triangle (n(n+1)/2,), in float64."""
    import torch

    size = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64, device=packed.device)
    rows, columns = torch.triu_indices(size, size, device=packed.device)
    matrix[rows, columns] = packed.double()
    matrix[columns, rows] = packed.double()
    return matrix


def damped(gram: torch.Tensor, factor: float) -> torch.Tensor:
    """The matrix with its off-diagonal entries times `factor`; a new one."""
    import torch

    return gram * factor + torch.diag(gram.diagonal() * (1 - factor))


def divided(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """above (n, m) · below⁺ (m, m), below symmetric: directions of relative size under 1e-10 count as zero; float64."""
    import torch

    quotient: torch.Tensor = above @ torch.linalg.pinv(below, rtol=1e-10, hermitian=True)
    return quotient
