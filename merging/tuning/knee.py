"""The knee of a trade-off: where more of a patch begins to cost more than it brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CurvePoint:
    """One strength of a patch. gain: what the wanted quality is above the base's; retention: the same of the kept one.

    Both grow with quality, so a retention below 0 is something forgotten. distance: from the chord, as `knee` has it,
    None for a strength past the greatest gain.
    """

    strength: float
    gain: float
    retention: float
    distance: float | None = None


def knee(strengths: Sequence[float], gains: Sequence[float], retentions: Sequence[float]) -> list[float | None]:
    """How far each point of the curve lies above its chord; the largest is the knee's. All None where none gains.

    Strengths from 0, ascending, are taken up to the greatest gain: beyond it a patch only costs. There x = what was
    forgotten, the most of any smaller strength, and y = gain are scaled to [0, 1]; the value is y - x, √2 times the
    distance from the chord (0, 0)-(1, 1). Where nothing is forgotten x is 0 and the greatest gain is the knee.
    Source: Kneedle, Satopää et al., ICDCSW 2011, sec. III, steps 2 and 3, without smoothing and with its greatest
    maximum; retention takes the place of its x-axis.
    """
    y, lost = np.asarray(gains, float), np.maximum.accumulate(np.maximum(0.0, -np.asarray(retentions, float)))
    top = int(np.argmax(y))
    if y[top] <= 0:
        return [None] * len(strengths)
    most = lost[: top + 1].max()
    x = lost / most if most > 0 else np.zeros_like(lost)
    found = np.maximum(y, 0.0) / y[top] - x
    return [float(one) if number <= top else None for number, one in enumerate(found)]


def curve(strengths: Sequence[float], gains: Sequence[float], retentions: Sequence[float]) -> list[CurvePoint]:
    """The points of the curve, with their distances from the chord."""
    distances = knee(strengths, gains, retentions)
    return [CurvePoint(*one) for one in zip(strengths, gains, retentions, distances, strict=True)]


def knee_of(points: Sequence[CurvePoint]) -> CurvePoint | None:
    """The point farthest above the chord, the weakest of several; None where nothing is gained."""
    above = [one for one in points if one.distance is not None and one.gain > 0]
    return max(above, key=lambda one: (one.distance or 0.0, -one.strength), default=None)
