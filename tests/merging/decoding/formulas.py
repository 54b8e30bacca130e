"""The papers' formulas of the operators, with numpy in float64: from logits (members, vocabulary) to a distribution."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def softmax(z: Array) -> Array:
    exponents = np.exp(z - z.max())
    return np.asarray(exponents / exponents.sum())


def kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def proxied(z: Array, weights: Sequence[float], alpha: float = 1.0) -> Array:
    return softmax(z[0] + alpha * sum(w * (e - z[1]) for w, e in zip(weights, z[2:], strict=True)))


def emulated(z: Array, weights: Sequence[float], beta: float = 1.0) -> Array:
    """p_large · (p_tuned / p_base)^β / Z."""
    large, base, tuned = map(softmax, z)
    unnormalised = large * (tuned / base) ** beta
    return np.asarray(unnormalised / unnormalised.sum())


def contrasted(
    z: Array, weights: Sequence[float], alpha: float = 0.1, beta: float = 1.0, temperature: float = 1.0
) -> Array:
    strong, weak = softmax(z[0]), softmax(z[1] / temperature)
    scores = np.where(strong >= alpha * strong.max(), strong / weak**beta, 0.0)
    return np.asarray(scores / scores.sum())


def averaged(z: Array, weights: Sequence[float], space: str = "logits") -> Array:
    shares = np.array(weights) / sum(weights)
    members = np.array([softmax(one) for one in z])
    if space == "probs":
        return np.asarray(shares @ members)
    product = np.prod(members ** shares[:, None], axis=0)
    return np.asarray(product / product.sum())


def misses(z: Array, alphas: Sequence[float], *, both: bool) -> float:
    """How far the fused model's distances from the large one are from the experts' distances from their base."""
    fused, large, base = (
        softmax(z[0] + sum(a * (e - z[1]) for a, e in zip(alphas, z[2:], strict=True))),
        *map(softmax, z[:2]),
    )
    found = 0.0
    for expert in map(softmax, z[2:]):
        found += (kl(fused, large) - kl(expert, base)) ** 2
        found += (kl(large, fused) - kl(base, expert)) ** 2 if both else 0.0
    return found


def fused(z: Array, weights: Sequence[float], most: float = 2.0, step: float = 0.1) -> Array:
    """With one expert, the factor of the whole grid that misses least."""
    grid = [step * number for number in range(round(most / step) + 1)]
    assert len(z) == 3, "several experts' factors are searched, and here none is"
    return proxied(z, [1.0], min(grid, key=lambda alpha: misses(z, [alpha], both=False)))


FORMULAS: Mapping[str, Callable[..., Array]] = {
    "contrast": contrasted,
    "eft": emulated,
    "ensemble": averaged,
    "fusion": fused,
    "proxy": proxied,
}
