"""How far a sum of low-rank patches is to be reduced: what plans hold of it. Never imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.patch import Exporter, Patch


@dataclass(frozen=True)
class Reduction:
    """How far to reduce: to `rank` at most, or to the fewest ranks that hold `energy` of a module's squared norm.

    export: of the kind that is made. addends, base_name, base: what it is given, as they would be without reduction.
    """

    asked: str
    rank: int | None
    energy: float | None
    export: Exporter
    addends: Sequence[tuple[float, Patch]]
    base_name: str
    base: Checkpoint | None


def limits_of(asked: str) -> tuple[int | None, float | None]:
    """Rank and energy of "r=16" or "energy=0.99", one of them None. Raises InvalidParameter."""
    name, _, value = asked.partition("=")
    try:
        if name == "r" and int(value) >= 1:
            return int(value), None
        if name == "energy" and 0 < float(value) <= 1:
            return None, float(value)
    except ValueError:
        pass
    raise InvalidParameter(f"--as KIND:{asked}: expected r=N with N of 1 or more, or energy=E with E in (0, 1]")
