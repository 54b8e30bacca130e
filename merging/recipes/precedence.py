"""What a recipe file says of one parameter: gradients, filters, and which of several places counts.

Source: mergekit 0.1.5 `parameter_resolver.resolve_parameter`: an input's own setting comes before its slice's, its
module's, the file's and the method's default; where no filter of a place is in the tensor's name, the next one counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterhub.merging.errors import RecipeFileError
from adapterhub.merging.recipes.documents import shown
from adapterhub.merging.recipes.mergekit import Setting
from adapterhub.merging.recipes.values import ANY, Scalar, Value, schedule

Scope = tuple[str, Mapping[str, Any]]
"""Where parameters stand in the file, and the parameters by name."""


def resolved(name: str, scopes: Sequence[Scope], setting: Setting, where: str) -> Value:
    """The value of a parameter at every tensor, as a scalar or a schedule.

    scopes: the nearest first. Raises RecipeFileError for what is no value, and where nothing says what holds for some
    tensors.
    """
    cases: list[tuple[str, list[Scalar]]] = []
    for place, scope in scopes:
        if name in scope:
            at = f"{place}.{name}"
            cases += [(part, [_scalar(one, setting, at) for one in points]) for part, points in _cases(scope[name], at)]
    if setting.default is not None:
        cases.append((ANY, [_word(setting.default, setting)]))
    if not any(part == ANY for part, _ in cases):
        told = "for tensors that no filter names" if cases else "for every input"
        raise RecipeFileError(where, f"a {name} is needed {told}; write it below parameters")
    try:
        return schedule(cases)
    except ValueError as error:
        raise RecipeFileError(where, f"{name}: {error}") from error


def _cases(value: Any, at: str) -> Iterator[tuple[str, list[Any]]]:
    """(part of a name, points) of a scalar, a gradient, a condition, or a list of conditions."""
    if isinstance(value, Mapping):
        yield _condition(value, at)
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            yield _condition(one, f"{at}[{number}]")
    else:
        yield ANY, _points(value, at)


def _condition(value: Mapping[str, Any], at: str) -> tuple[str, list[Any]]:
    unknown = value.keys() - {"filter", "value"}
    if unknown or "value" not in value:
        what = f"found {min(unknown)}" if unknown else "value is missing"
        raise RecipeFileError(at, f"a condition has value, and filter where it does not hold for all; {what}")
    part = value.get("filter")
    if not isinstance(part, str | None):
        raise RecipeFileError(at, f"filter is {part!r}; a part of tensors' names is expected")
    return part or ANY, _points(value["value"], at)


def _points(value: Any, at: str) -> list[Any]:
    points = value if isinstance(value, list) else [value]
    if not points or any(isinstance(one, list | Mapping | None) for one in points):
        raise RecipeFileError(
            at, f"{shown(value)} is no value; expected a value, a list of values over depth, or filters with values"
        )
    return points


def _scalar(value: Any, setting: Setting, at: str) -> Scalar:
    """A value in the setting's type. YAML reads 1e-5 as text, which a number may be."""
    if setting.kind == "number" and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise RecipeFileError(at, f"{shown(value)} is no number") from None
    if setting.kind == "truth" and value in (0, 1) and not isinstance(value, str):
        return _word(bool(value), setting)
    # our own words for what mergekit has true and false for
    if isinstance(value, str) and (setting.words or setting.kind == "word"):
        return value
    raise RecipeFileError(at, f"is {shown(value)}; expected {_EXPECTED[setting.kind]}")


_EXPECTED = {"number": "a number", "truth": "true or false", "word": "a word"}


def _word(value: Scalar, setting: Setting) -> Scalar:
    return setting.words[0 if value else 1] if isinstance(value, bool) and setting.words else value
