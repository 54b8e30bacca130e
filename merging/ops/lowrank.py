"""Products B @ A of thin factors, handled without forming them: sums, inner products, singular values, fewer ranks.

Throughout: left (n, r), right (r, m), the matrix left @ right is (n, m). Inputs are not modified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch


class Factors(NamedTuple):
    """A matrix as left (n, r) @ right (r, m)."""

    left: torch.Tensor
    right: torch.Tensor


class Trained(NamedTuple):
    """A LoRA at one site as it was trained: scaling · B (out, r) @ A (r, in), convolutions flattened; float64."""

    A: torch.Tensor
    B: torch.Tensor
    scaling: float


def factors_of(fields: Mapping[str, torch.Tensor], weight: float, *, transpose: bool) -> Factors:
    """The float32 factors of a lowrank term, weight, d and b multiplied into B; fields as in terms/lowrank.

    Both are fresh tensors: products of the same numbers are the same bytes wherever in a file they lie.
    """
    import torch

    A = fields["A"].flatten(1).to(torch.float32, copy=True)  # (r, in)
    B = fields["B"].flatten(1).float() * weight  # (out, r)
    if "d" in fields:
        B = B * fields["d"].float()
    if "b" in fields:
        B = B * fields["b"].float().unsqueeze(1)
    return Factors(A.T, B.T) if transpose else Factors(B, A)


def concatenate(parts: Sequence[Factors]) -> Factors:
    """The sum of several products as one product whose rank is the sum of the ranks: exact."""
    import torch

    if len(parts) == 1:
        return parts[0]
    return Factors(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 0))


def inner_product(a: Factors, b: Factors) -> float:
    """<a, b> = sum over entries of a ⊙ b, in float64, from (r_a, r_b) matrices alone."""
    lefts = a.left.double().T @ b.left.double()  # (r_a, r_b)
    rights = a.right.double() @ b.right.double().T  # (r_a, r_b)
    return float((lefts * rights).sum())


def core(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Q_left (n, k), core (k, l), Q_right (m, l)) in float64: left @ right = Q_left @ core @ Q_right.T.

    Both Q have orthonormal columns.
    """
    import torch

    q_left, r_left = torch.linalg.qr(factors.left.double())
    q_right, r_right = torch.linalg.qr(factors.right.double().T)
    return q_left, r_left @ r_right.T, q_right


def singular_values(factors: Factors) -> torch.Tensor:
    """The min(n, m, r) singular values in float64, largest first, by the SVD of an r x r core."""
    import torch

    values: torch.Tensor = torch.linalg.svdvals(core(factors)[1])
    return values


def bases(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(U (n, k), S (k), V (m, k)): the thin SVD in float64, singular values of rounding size (< 1e-6 S[0]) dropped."""
    import torch

    q_left, middle, q_right = core(factors)
    u, s, vh = torch.linalg.svd(middle, full_matrices=False)
    k = int((s > 1e-6 * s[0]).sum()) if s.numel() and s[0] > 0 else 0
    return q_left @ u[:, :k], s[:k], q_right @ vh[:k].T


def reduce_rank(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The nearest product of at most `rank` in float32, and the share of squared norm that it loses, in [0, 1].

    Source: Eckart-Young on the r x r core; exact, up to rounding, where `rank` is not below the product's own.
    """
    u, s, v = bases(factors)
    total = float(s.square().sum())
    lost = float(s[rank:].square().sum()) / total if total else 0.0
    u, s, v = u[:, :rank], s[:rank], v[:, :rank]
    return Factors((u * s).float().contiguous(), v.T.float().contiguous()), lost


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of the singular values divided by their sum: k for k equal ones, 0.0 where all are zero.

    Source: Roy & Vetterli, The effective rank, EUSIPCO 2007.
    """
    import torch

    total = float(values.sum())
    if total == 0.0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())
