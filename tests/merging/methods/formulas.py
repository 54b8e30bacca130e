"""Merge methods that no installed library has, from their papers, in numpy and float64: oracles, no code of ours.

Each takes the deltas D, arrays of one shape, weights w, and what it is told, and gives the merged delta.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Where:
    """The tensor. base: its values. depth: l / (L - 1), 0 outside layers. masks: of the random methods, by input."""

    base: Array
    depth: float
    masks: Callable[[int, Any], Array]


def total(D: Sequence[Array], w: Sequence[float]) -> Array:
    return np.tensordot(np.asarray(w, np.float64), np.stack(D), 1)


def largest(delta: Array, count: int) -> Array:
    """The delta with its `count` largest entries alone; of equal ones the first."""
    order = np.argsort(-np.abs(delta), axis=None, kind="stable")[:count]
    kept = np.zeros(delta.size)
    kept[order] = delta.reshape(-1)[order]
    return kept.reshape(delta.shape)


def share(delta: Array, density: float) -> Array:
    return largest(delta, max(1, int(density * delta.size)))


def elect(D: Sequence[Array], w: Sequence[float]) -> Array:
    """Those of the elected sign, averaged by weights."""
    weighted = np.stack([one * weight for one, weight in zip(D, w, strict=True)])
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agrees = np.sign(weighted) == sign
    divisor = (agrees * np.asarray(w).reshape(-1, *[1] * D[0].ndim)).sum(0)
    return (weighted * agrees).sum(0) / np.where(divisor == 0, 1, divisor)  # type: ignore[no-any-return]


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    count = int((s > 1e-6 * s[0]).sum()) if s.size and s[0] > 0 else 0
    return u[:, :count], s[:count], vh[:count]


def polar(columns: Array) -> Array:
    p, _, qh = np.linalg.svd(columns, full_matrices=False)
    return p @ qh  # type: ignore[no-any-return]


# ---- entry by entry --------------------------------------------------------------------------------------------------


def magmax(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    weighted = np.stack([one * weight for one, weight in zip(D, w, strict=True)])
    size = np.abs(weighted).max(0)
    positive = (weighted == size).any(0)
    return np.where(positive, size, -size)  # type: ignore[no-any-return]


def consensus(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    tau = total(D, w)
    votes = np.sum([np.abs(one) > 0.6 * np.abs(tau - one) for one in D], 0)
    return np.where(votes >= 2, tau, 0)


def tall(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    tau = total(D, w)
    return np.where(np.abs(D[1]) > 0.4 * np.abs(tau - D[1]), tau, 0)


def emr(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    sign = np.sign(np.stack(D).sum(0))
    u = sign * np.maximum(np.stack(D) * sign, 0).max(0)
    kept = np.where(D[1] * u > 0, u, 0)
    return kept * (np.abs(D[1]).sum() / np.abs(kept).sum() if kept.any() else 0)


def lines(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    return (0.4 + 0.8 * at.depth) * total(D, w)


def localize_and_stitch(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    kept = [share(one, 0.2) for one in D]
    return total(kept, w) / np.maximum(np.sum([one != 0 for one in kept], 0), 1)  # type: ignore[no-any-return]


def cabs(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    n, m = 2, 8
    merged, taken = np.zeros(D[0].size), np.zeros(D[0].size, bool)
    for one, weight in zip(D, w, strict=True):
        flat = one.reshape(-1)
        for start in range(0, flat.size - m + 1, m):
            free = [place for place in range(start, start + m) if not taken[place]]
            for place in sorted(free, key=lambda place: (-abs(flat[place]), place))[:n]:
                merged[place] += weight * flat[place]
                taken[place] = True
    return merged.reshape(D[0].shape)


def pcb(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    def clamped(values: Array, low: float, high: float) -> Array:
        order = np.sort(values, None)
        return values.clip(order[int(values.size * low)], order[int(values.size * (1 - high) - 1)])

    def scaled(values: Array) -> Array:
        low, high = values.min(), values.max()
        return (values - low) / (high - low) if high > low else (values > 0).astype(float)

    above, below = np.zeros(D[0].shape), np.zeros(D[0].shape)
    for one, weight in zip(D, w, strict=True):
        size = clamped(np.abs(one), 0.0001, 0.0001)
        balance = scaled(clamped(np.exp(len(D) * scaled(size) ** 2) * np.tanh(one * np.sum(D, 0)), 0.9, 0))
        above, below = above + weight * np.sign(one) * size * balance, below + balance
    return above / np.maximum(below, 1e-12)


# ---- at random, with our masks ---------------------------------------------------------------------------------------


def dare_linear(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    return total([one * at.masks(number, 0.4) / 0.4 for number, one in enumerate(D)], w)


def _signs(kept: Sequence[Array], w: Sequence[float]) -> Array:
    weighted = np.stack([one * weight for one, weight in zip(kept, w, strict=True)])
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    return (weighted * (np.sign(weighted) == sign)).sum(0)  # type: ignore[no-any-return]


def dare_ties(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    return _signs([one * at.masks(number, 0.4) / 0.4 for number, one in enumerate(D)], w)


def _magprune(D: Sequence[Array], at: Where) -> list[Array]:
    kept = []
    for number, one in enumerate(D):
        rows = one.reshape(len(one), -1) if one.ndim > 1 else one.reshape(1, -1)
        ranks = np.argsort(np.argsort(np.abs(rows), 1, kind="stable"), 1)
        likely = (0.25 + ranks * 0.3 / (rows.shape[1] - 1)).reshape(one.shape)
        kept.append(one * at.masks(number, likely) / likely)
    return kept


def della_linear(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    return total(_magprune(D, at), w)


def della(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    return elect(_magprune(D, at), w)


# ---- by directions ---------------------------------------------------------------------------------------------------


def ties_of(D: Sequence[Array], w: Sequence[float]) -> Array:
    return elect([share(one, 0.2) for one in D], w)


def knots(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    if D[0].ndim < 2:
        return ties_of(D, w)
    u = svd(np.hstack(D))[0]
    return u @ ties_of([u.T @ one for one in D], w)


def core_space(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    if D[0].ndim < 2:
        return ties_of(D, w)
    parts = [svd(one) for one in D]
    left = svd(np.hstack([u * np.sqrt(s) for u, s, _ in parts]))[0]
    right = svd(np.vstack([np.sqrt(s)[:, None] * vh for _, s, vh in parts]))[2]
    return left @ ties_of([left.T @ one @ right.T for one in D], w) @ right


def tsv_m(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    if D[0].ndim < 2:
        return total(D, w) / len(D)
    count = max(1, min(D[0].shape) // len(D))
    parts = [(u[:, :count], s[:count] * weight, vh[:count]) for (u, s, vh), weight in zip(map(svd, D), w, strict=True)]
    left, right = (polar(np.hstack(one)) for one in ([u for u, _, _ in parts], [vh.T for _, _, vh in parts]))
    return left * np.concatenate([s for _, s, _ in parts]) @ right.T  # type: ignore[no-any-return]


def iso_c(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    if D[0].ndim < 2:
        return total(D, w) / len(D)
    u, s, vh = svd(total(D, w))
    return s.mean() * u @ vh  # type: ignore[no-any-return]


def iso_cts(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    if D[0].ndim < 2:
        return total(D, w) / len(D)
    u, s, vh = svd(total(D, w))
    own = (len(s) - int(0.8 * len(s))) // len(D)
    common = len(s) - own * len(D)
    uc, sc, vc = u[:, :common], s[:common], vh[:common]
    rest = [svd(one * weight - uc @ (uc.T @ (one * weight))) for one, weight in zip(D, w, strict=True)]
    left = polar(np.hstack([*(one[0][:, :own] for one in rest), uc]))
    right = polar(np.hstack([*(one[2][:own].T for one in rest), vc.T]))
    return np.concatenate([*(one[1][:own] for one in rest), sc]).mean() * left @ right.T  # type: ignore[no-any-return]


def wudi(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    if D[0].ndim < 2:
        return total(D, [1 / len(D)] * len(D))
    grams = [one.T @ one / (one**2).sum() for one in D]
    return sum(one @ gram for one, gram in zip(D, grams, strict=True)) @ np.linalg.pinv(sum(grams), rcond=1e-10)  # type: ignore[no-any-return]


def deintrude(D: Sequence[Array], w: Sequence[float], at: Where) -> Array:
    delta = total(D, w)
    if delta.ndim < 2:
        return delta
    u, s, vh = np.linalg.svd(at.base + delta, full_matrices=False)
    known = np.linalg.svd(at.base, full_matrices=False)[0]
    strange = [j for j in range(min(10, len(s))) if np.abs(u[:, j] @ known).max() < 0.8]
    return delta - 0.75 * sum((s[j] * np.outer(u[:, j], vh[j]) for j in strange), np.zeros(delta.shape))


WEIGHTS = (0.5, -0.25, 0.8)
EQUAL = (1.0, 1.0, 1.0)
FORMULAS: dict[str, tuple[Callable[[Sequence[Array], Sequence[float], Where], Array], Sequence[float], str]] = {
    "magmax": (magmax, WEIGHTS, ""),
    "consensus": (consensus, (0.5, 0.25, 0.8), ""),
    "tall": (tall, WEIGHTS, ", task=2, tall=0.4"),
    "emr": (emr, EQUAL, ", task=2"),
    "lines": (lines, WEIGHTS, ", alpha=0.4, beta=0.8"),
    "localize_and_stitch": (localize_and_stitch, WEIGHTS, ", density=0.2"),
    "cabs": (cabs, WEIGHTS, ", n=2, m=8"),
    "pcb": (pcb, WEIGHTS, ""),
    "dare_linear": (dare_linear, WEIGHTS, ", density=0.4"),
    "dare_ties": (dare_ties, WEIGHTS, ", density=0.4"),
    "della": (della, (0.5, 0.25, 0.8), ", density=0.4, normalize=true"),
    "della_linear": (della_linear, WEIGHTS, ", density=0.4"),
    "knots": (knots, WEIGHTS, ""),
    "core_space": (core_space, WEIGHTS, ""),
    "tsv_m": (tsv_m, WEIGHTS, ""),
    "iso_c": (iso_c, WEIGHTS, ""),
    "iso_cts": (iso_cts, WEIGHTS, ""),
    "wudi": (wudi, EQUAL, ""),
    "sequence": (lambda D, w, at: total(D, w), WEIGHTS, ""),
    "deintrude": (deintrude, (0.9,), ", eps=0.8, scale=0.25"),
}
"""By method: its formula, the weights of its inputs, and what it is told besides, as in an expression."""
