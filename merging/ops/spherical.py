"""Averages on the sphere: tensors as vectors whose direction and length are averaged apart. All in float64 inside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from adapterhub.merging.registry import Pieces

TINY = 1e-8
"""A length at or below which a vector has no direction."""


def slerp(a: torch.Tensor, b: torch.Tensor, t: float, *, nearly: float = 0.9995) -> torch.Tensor:
    """The vector a share t of the way from a to b along the arc between their directions; shapes and dtypes are equal.

    sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b, θ the angle between them; where |cos θ| is above `nearly`, or one has no
    length, the straight line. Not modified; float64 inside, the result in their dtype. Source: Shoemake, SIGGRAPH 1985.
    """
    x, y = a.double(), b.double()
    cosine = _cosine(x, y)
    if abs(cosine) > nearly:
        return ((1 - t) * x + t * y).to(a.dtype)
    angle = math.acos(cosine)
    left, right = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return (left * x + right * y).to(a.dtype)


def shares(pieces: Pieces, t: float, *, nearly: float = 0.9995) -> tuple[float, float]:
    """The factors of W and W + Δ whose sum `slerp` gives, of a base and its first delta that come in pieces.

    Source: as `slerp`; the angle is that of the whole tensors.
    """
    of_base, mixed, of_tuned = pieces.products()
    lengths = math.sqrt(of_base), math.sqrt(of_tuned)
    units = [length if length > TINY else 1.0 for length in lengths]
    cosine = _clamped(mixed / units[0] / units[1])
    if abs(cosine) > nearly:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def slerp_rows(a: torch.Tensor, b: torch.Tensor, t: float, dim: int) -> torch.Tensor:
    """`slerp` of every vector along `dim`, each at its own angle; only true colinear ones go along the line."""
    import torch

    x, y = a.double(), b.double()
    lengths = (x.norm(dim=dim, keepdim=True) * y.norm(dim=dim, keepdim=True)).clamp_min(torch.finfo(x.dtype).tiny)
    cosine = ((x * y).sum(dim, keepdim=True) / lengths).clamp(-1.0, 1.0)
    is_line = 1 - cosine.square() <= 1e-16
    angle = cosine.masked_fill(is_line, 0.0).acos()
    left = ((1 - t) * angle).sin() / angle.sin()
    right = (t * angle).sin() / angle.sin()
    return torch.where(is_line, (1 - t) * x + t * y, left * x + right * y).to(a.dtype)


def tangent_mean(vectors: Sequence[torch.Tensor], shares: Sequence[float], eps: float) -> torch.Tensor:
    """The mean direction, one step of the exponential map from the weighted mean, times the weighted mean length.

    shares: of each, adding up to 1. Vectors whose mean direction vanishes have a plain weighted sum, if they are two.
    Source: mergekit's multislerp; the logarithm is approximated by the projection on the tangent space.
    """
    wide = [vector.double() for vector in vectors]
    lengths = [float(vector.norm()) for vector in wide]
    units = [vector / (length + eps) for vector, length in zip(wide, lengths, strict=True)]
    mean = sum((unit * share for unit, share in zip(units[1:], shares[1:], strict=True)), units[0] * shares[0])
    size = float(mean.norm())
    if size < eps:
        total = sum((v * share for v, share in zip(wide[1:], shares[1:], strict=True)), wide[0] * shares[0])
        return total.to(vectors[0].dtype)
    mean = mean / size
    steps = [unit - (unit * mean).sum() * mean for unit in units]
    step = sum((one * share for one, share in zip(steps[1:], shares[1:], strict=True)), steps[0] * shares[0])
    far = float(step.norm())
    direction = mean * math.cos(far) + (step / far * math.sin(far) if far > eps else 0.0)
    return (direction * sum(n * share for n, share in zip(lengths, shares, strict=True))).to(vectors[0].dtype)


def karcher_mean(vectors: Sequence[torch.Tensor], rounds: int, tolerance: float) -> torch.Tensor:
    """The Riemannian centre of the directions, each of equal share, times the mean length; those without length apart.

    Iterated by logarithm and exponential map until a step is below `tolerance`, or for `rounds`.
    Source: Karcher, Comm. Pure Appl. Math. 30 (1977); mergekit 0.1.5 karcher.
    """
    wide = [vector.double() for vector in vectors]
    lengths = [float(vector.norm()) for vector in wide]
    units = [vector / length for vector, length in zip(wide, lengths, strict=True) if length > tolerance]
    if not units:
        return vectors[0] * 0
    start = sum(units[1:], units[0]) / len(units)
    size = float(start.norm())
    mean = start / size if size >= tolerance else units[0]
    for _ in range(rounds):
        steps = mean * 0
        for unit in units:
            cosine = _clamped(float((mean * unit).sum()))
            angle = math.acos(cosine)
            if angle > tolerance:
                steps += (unit - cosine * mean) * (angle / math.sin(angle) / len(units))
        far = float(steps.norm())
        if far < tolerance:
            break
        mean = mean * math.cos(far) + steps * (math.sin(far) / far)
    return (mean * (math.fsum(lengths) / len(lengths))).to(vectors[0].dtype)


def _cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    lengths = [float(one.norm()) for one in (x, y)]
    units = [one / length if length > TINY else one for one, length in zip((x, y), lengths, strict=True)]
    return _clamped(float((units[0] * units[1]).sum()))


def _clamped(value: float) -> float:
    return max(-1.0, min(1.0, value))
