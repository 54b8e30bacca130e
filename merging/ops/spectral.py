"""Merging in the spaces that deltas span: singular triplets, joint orthonormal bases, polar factors. All in float64.

A delta of rank r is handled by its factors, so that the work is that of (n + m)·R² numbers for R ranks in all and never
of n·m: what holds for the factors holds for the matrix. Singular values of rounding size are dropped: what a
decomposition puts in their place is arbitrary, and would come into every method that treats directions alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from adapterhub.merging.ops.lowrank import Factors, bases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

RELATIVE = 1e-6
"""Singular values below this share of the largest count as zero."""


class Triplets(NamedTuple):
    """u (n, k) · diag(s (k)) · v (m, k)ᵀ, columns orthonormal, s descending."""

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    def head(self, count: int) -> Triplets:
        """The largest of them."""
        return Triplets(self.u[:, :count], self.s[:count], self.v[:, :count])

    def factors(self) -> Factors:
        """The same as a product, half of each singular value in either factor."""
        half = self.s.sqrt()
        return Factors(self.u * half, half.unsqueeze(1) * self.v.T)


def of_dense(matrix: torch.Tensor) -> Triplets:
    """The singular triplets of a matrix (n, m) that are not zero."""
    import torch

    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    count = int((s > RELATIVE * s[0]).sum()) if s.numel() and s[0] > 0 else 0
    return Triplets(u[:, :count], s[:count], vh[:count].T)


def of_factors(factors: Factors) -> Triplets:
    """The singular triplets of a product that are not zero."""
    return Triplets(*bases(factors))


def orthogonalised(columns: torch.Tensor) -> torch.Tensor:
    """The nearest matrix (n, k) with orthonormal columns, or rows where k > n: the polar factor."""
    import torch

    if not columns.numel():
        return columns
    p, _, qh = torch.linalg.svd(columns, full_matrices=False)
    nearest: torch.Tensor = p @ qh
    return nearest


class Joint(NamedTuple):
    """Deltas in the basis that they span together: delta t is left (n, R) · cores[t] (R, Q) · right (Q, m)."""

    left: torch.Tensor
    cores: list[torch.Tensor]
    right: torch.Tensor


def joint(deltas: Sequence[Factors]) -> Joint:
    """All deltas by one orthonormal basis of their columns and one of their rows; nothing is lost.

    The bases are those of the balanced factors, so that they depend on the deltas and not on how B·A is divided.
    Source: arXiv:2509.17786 sec. 3.1 (Core Space), of whose factors as trained that is not so.
    """
    import torch

    deltas = [of_factors(one).factors() for one in deltas]
    left = of_dense(torch.cat([one.left.double() for one in deltas], 1)).u  # (n, R)
    right = of_dense(torch.cat([one.right.double() for one in deltas], 0)).v.T  # (Q, m)
    cores = [(left.T @ one.left.double()) @ (one.right.double() @ right.T) for one in deltas]
    return Joint(left, cores, right)


def merged(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    on_factors: Callable[[Sequence[Factors], Sequence[float]], Factors],
    otherwise: Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor],
) -> torch.Tensor:
    """What a method for factors makes of dense deltas; `otherwise` for those that are no matrices, such as biases.

    deltas: each of one shape and dtype, not modified; the result has both. Convolutions are (out, in·k·k).
    """
    first = deltas[0]
    if first.dim() < 2 or not first.numel():
        return otherwise(deltas, weights)
    left, right = on_factors([of_dense(delta.flatten(1)).factors() for delta in deltas], weights)
    return (left.double() @ right.double()).to(first.dtype).view(first.shape)
