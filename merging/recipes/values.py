"""Values of a recipe: numbers, words, and schedules, which differ from tensor to tensor; how each is written.

A schedule is a gradient over depth, `[0.2, 0.8]`, or a choice by the tensor's name, `{"mlp": [0.1, 0.9], "*": 0.5}`.
Source: mergekit 0.1.5 `config.evaluate_setting`: the same interpolation, the same filters.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, TypeAlias

from adapterhub.merging.registry import make_parameters, parameters_of

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*(@[A-Za-z0-9._/-]+)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

ANY = "*"
"""The part of a name that every tensor has."""

Scalar: TypeAlias = float | bool | str


@dataclass(frozen=True)
class Schedule:
    """What a value is at each tensor. Built by `schedule`, in the one form that means it.

    cases: (part of a name, points), of which the first whose part is in the tensor's name counts; the last is ANY.
    points: one or more of one type, over the depth from the first layer to the last.
    """

    cases: tuple[tuple[str, tuple[Scalar, ...]], ...]

    def at(self, name: str, depth: float | None) -> Scalar:
        """The value at a tensor. depth: l / (L - 1) of layer l of L, 1 of a single layer; None outside counts as 0.

        Numbers are interpolated between the two nearest points; of words and truth values the one before is taken.
        """
        points = next(points for part, points in self.cases if part == ANY or part in name)
        place = (depth or 0.0) * (len(points) - 1)
        before = int(place)
        low, high = points[before], points[min(before + 1, len(points) - 1)]
        if isinstance(low, bool | str) or isinstance(high, bool | str):
            return low
        share = place - before
        return (1 - share) * low + share * high

    def points(self) -> tuple[Scalar, ...]:
        """Every value listed."""
        return tuple(point for _, points in self.cases for point in points)

    def map(self, change: Callable[[Scalar], Scalar]) -> "Schedule":
        """The schedule with each point changed."""
        return Schedule(tuple((part, tuple(map(change, points))) for part, points in self.cases))

    def __str__(self) -> str:
        [*chosen, (_, rest)] = self.cases
        if not chosen:
            return _points_text(rest)
        return "{" + ", ".join(f"{quoted(part)}: {_points_text(points)}" for part, points in self.cases) + "}"


Value: TypeAlias = Scalar | Schedule


def schedule(cases: Iterable[tuple[str, Sequence[Scalar]]]) -> Value:
    """The schedule of (part of a name, points), or the scalar where it is one at every tensor.

    Raises ValueError, whose text is a sentence, without points, for points of several types, and where no case holds
    for all tensors.
    """
    kept: list[tuple[str, tuple[Scalar, ...]]] = []
    for part, points in cases:
        _check_points(points)
        # What holds an earlier part is chosen by that one already.
        if not any(earlier == ANY or earlier in part for earlier, _ in kept):
            kept.append((part or ANY, (points[0],) if len(set(points)) == 1 else tuple(points)))
    if not kept or kept[-1][0] != ANY:
        raise ValueError('a choice by name ends with what holds for all other tensors, as in {"mlp": 0.2, "*": 0.5}')
    while len(kept) > 1 and kept[-2][1] == kept[-1][1]:
        del kept[-2]
    (_, points), *others = kept
    return points[0] if len(points) == 1 and not others else Schedule(tuple(kept))


def _check_points(points: Sequence[Scalar]) -> None:
    if not points:
        raise ValueError("a gradient has one value or more")
    if len({type(point) for point in points}) > 1:
        raise ValueError("a gradient's values are all numbers, all words, or all true and false")


def weight_at(weight: float, schedules: Iterable[Schedule], name: str, depth: float | None) -> float:
    """weight times its schedules, at one tensor."""
    return prod((float(one.at(name, depth)) for one in schedules), start=weight)


def is_numeric(value: Value) -> bool:
    """Whether a value is a number at every tensor."""
    points = value.points() if isinstance(value, Schedule) else (value,)
    return not any(isinstance(point, bool | str) for point in points)


# ---- parameters of methods -------------------------------------------------------------------------------------------


def make_scheduled(owner: type, values: Mapping[str, Any], called: str) -> Any:
    """As `registry.make_parameters`, of values among which schedules may be; each of their points is checked.

    Raises InvalidParameter.
    """
    schedules = {name: value for name, value in values.items() if isinstance(value, Schedule)}
    first = {name: value.points()[0] for name, value in schedules.items()}
    made = make_parameters(owner, {**values, **first}, called)
    known = {one.name: one for one in parameters_of(owner)}
    checked = {
        name: value.map(lambda point, one=known[name]: one.check(point, called))  # type: ignore[misc]
        for name, value in schedules.items()
    }
    return replace(made, **checked) if checked else made


def is_scheduled(parameters: Any) -> bool:
    """Whether a parameter differs from tensor to tensor."""
    return any(isinstance(getattr(parameters, one.name), Schedule) for one in fields(parameters))


def parameters_at(parameters: Any, name: str, depth: float | None, called: str) -> Any:
    """The parameters at one tensor. Raises InvalidParameter where an interpolated number must be whole and is not."""
    if not is_scheduled(parameters):
        return parameters
    found = {one.name: getattr(parameters, one.name) for one in fields(parameters)}
    here = {key: value.at(name, depth) if isinstance(value, Schedule) else value for key, value in found.items()}
    return make_parameters(type(parameters), here, called)


def parameters_json(parameters: Any) -> dict[str, Any]:
    """The parameters by name as JSON values; a schedule as `schedule_json` has it."""
    found = {one.name: getattr(parameters, one.name) for one in fields(parameters)}
    return {key: schedule_json(value) if isinstance(value, Schedule) else value for key, value in found.items()}


def schedule_json(one: Schedule) -> list[Any]:
    """[[part of a name, [points]], …]."""
    return [[part, list(points)] for part, points in one.cases]


# ---- text ------------------------------------------------------------------------------------------------------------


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number: "2", "0.1", "1e-05"."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def value_text(value: Any) -> str:
    """A parameter's value as it is written: true, 0.2, count, "two words", [0.2, 0.8]."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Schedule):
        return str(value)
    if isinstance(value, str):
        is_bare = NAME.fullmatch(value) and not NUMBER.fullmatch(value) and value not in ("true", "false")
        return value if is_bare else quoted(value)
    return number_text(value)


def _points_text(points: Sequence[Scalar]) -> str:
    texts = [value_text(point) for point in points]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def quoted(text: str) -> str:
    """`text` in double quotes, quotes and backslashes in it escaped."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def unquoted(token: str) -> str:
    """What stands between the quotes of a token."""
    return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
