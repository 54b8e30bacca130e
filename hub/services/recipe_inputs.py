"""What a merge's result was made from, as the canonical recipe in it says: inputs by commit and digest, with weights.

Source: merging/recipes/canonical.py. The file comes from whoever pushed it, so nothing in it is taken for granted.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FILE = "recipe.json"
FORMAT = "adapterhub.recipe"
DEPTH = 64

_PINNED = re.compile(r"(?P<name>[^/@]{1,96}/[^/@]{1,96})@(?P<commit>[0-9a-f]{40})")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class RecipeInput:
    """One input. name: the repository's at the time. weight: of the input in the sum; None for the base."""

    name: str
    commit: str
    digest: str | None
    weight: float | None


def of(recipe: Mapping[str, Any]) -> list[RecipeInput]:
    """The inputs that a canonical recipe names as repositories at commits; [] for anything else."""
    inputs = recipe.get("inputs")
    if recipe.get("format") != FORMAT or not isinstance(inputs, list):
        return []
    weights: dict[int, float] = {}
    compose = recipe.get("compose")
    members = compose.get("members") if isinstance(compose, Mapping) else None
    for parts in (recipe.get("sum"), *_sums(recipe.get("stack")), *_sums(members)):
        for number, weight in _weights(parts, 1.0, 0):
            weights.setdefault(number, weight)
    found = (_input(one, weights.get(number)) for number, one in enumerate(inputs))
    return [one for one in found if one]


def _sums(parts: Any) -> Iterator[Any]:
    """The sums of a stack's slices, or of the members of a composition."""
    for one in parts if isinstance(parts, list) else []:
        if isinstance(one, Mapping):
            yield one.get("sum")


def _input(one: Any, weight: float | None) -> RecipeInput | None:
    pinned = _PINNED.fullmatch(str(one.get("name"))) if isinstance(one, Mapping) else None
    if pinned is None:
        return None
    digest = str(one.get("digest"))
    return RecipeInput(pinned["name"], pinned["commit"], digest if _DIGEST.fullmatch(digest) else None, weight)


def _weights(parts: Any, factor: float, depth: int) -> Iterator[tuple[int, float]]:
    """Numbers of inputs with the weight that stands before each, those inside of merge methods too."""
    if not isinstance(parts, list) or depth > DEPTH:
        return
    for part in parts:
        weight = part.get("weight") if isinstance(part, Mapping) else None
        if not isinstance(weight, int | float):
            continue
        numbers = [part.get("input"), *(part["delta"] if isinstance(part.get("delta"), list) else [])]
        yield from ((number, weight * factor) for number in numbers[:2] if isinstance(number, int))
        for inner in part["inputs"] if isinstance(part.get("inputs"), list) else []:
            if isinstance(inner, Mapping) and isinstance(inner.get("weight"), int | float):
                yield from _weights(inner.get("sum"), weight * factor * inner["weight"], depth + 1)
