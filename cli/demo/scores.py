"""What was measured: rows of the demo's tables, and what they say about interference and portability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One model and what it measures by task. better: 1 where larger values are better, -1 where smaller are."""

    name: str
    values: Mapping[str, float]
    better: int = 1
    ends_section: bool = False


def kept_gain(base: float, alone: float, together: float) -> float | None:
    """How much of a patch's gain over the base is left when it is merged or ported: 1 all, 0 none, above 1 more.

    None where the patch alone gains nothing. Losses and accuracies alike: only differences count.
    """
    gain = alone - base
    return (together - base) / gain if abs(gain) > 1e-6 else None


def interference(task: str, base: Row, alone: Row, together: Row) -> str:
    """A sentence: what a merge keeps of one patch's gain on the patch's own task."""
    kept = kept_gain(base.values[task], alone.values[task], together.values[task])
    if kept is None or not _gains(task, base, alone):
        return f"{task}: {alone.name} alone does not better {base.name}, so there is nothing to keep"
    return f"{task}: {together.name} keeps {kept:.0%} of what {alone.name} gains alone"


def portability(task: str, base: Row, ported: Row, fresh: Row) -> str:
    """A sentence: what a ported patch gains on the new base, beside one trained on it."""
    share = kept_gain(base.values[task], fresh.values[task], ported.values[task])
    if share is None or not _gains(task, base, fresh):
        return f"{task}: training on {base.name} gains nothing, so there is nothing to compare the port with"
    return f"{task}: the ported patch, without any training, gains {share:.0%} of what a freshly trained one does"


def _gains(task: str, base: Row, patched: Row) -> bool:
    return (patched.values[task] - base.values[task]) * base.better > 0
