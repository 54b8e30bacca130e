"""From a canonical recipe back to a recipe of nodes: what makes the same result again, at the same commits.

The JSON comes from whoever pushed it, so nothing in it is taken for granted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.merging.errors import InvalidParameter, InvalidRecipe, RecipeTooLarge
from adapterhub.merging.recipes.canonical import FORMAT, FORMAT_VERSION
from adapterhub.merging.recipes.compositions import composed
from adapterhub.merging.recipes.expression import DEFAULT_LIMITS
from adapterhub.merging.recipes.head_policy import Heads
from adapterhub.merging.recipes.nodes import Call, Composed, Delta, Form, Node, Recipe, Ref, Stack, Sum, Weighted
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy
from adapterhub.merging.recipes.values import Schedule, Value, schedule

FILE = "recipe.json"

MAX_BYTES = 4 << 20
"""Most bytes of a canonical recipe that are read."""

_FLOATS = ("F64", "F32", "BF16", "F16")
_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_FORM = frozenset({"dtype", "as", "cast", "layers", "stack", "compose", "tokenizer", "heads"})
_WHOLE = frozenset({"format", "format_version", "inputs", "base", "sum"}) | _FORM
_INPUT = frozenset({"name", "path", "kind", "digest", "layers"})
_COMPOSE = frozenset({"operator", "parameters", "members"})
_MEMBER = frozenset({"role", "weight", "base", "sum"})
_PARTS: Mapping[str, frozenset[str]] = {
    "input": frozenset({"weight", "schedules", "input"}),
    "delta": frozenset({"weight", "schedules", "delta"}),
    "method": frozenset({"weight", "schedules", "method", "parameters", "inputs"}),
}
"""What each kind of part says."""


@dataclass(frozen=True)
class Rebuilt:
    """A recipe whose canonical form is the one it was rebuilt from, where the inputs are the same.

    refs: of the inputs, in their order in the canonical form; names: what they are called there, "ns/name@<commit>".
    """

    recipe: Recipe
    refs: tuple[Ref, ...]
    names: tuple[str, ...]
    dtype: str | None
    as_kind: str | None


def rebuilt(content: bytes) -> Rebuilt:
    """The recipe that canonical JSON means. Raises InvalidRecipe, RecipeTooLarge."""
    if len(content) > MAX_BYTES:
        raise RecipeTooLarge(f"recipe.json has {len(content)} bytes; at most {MAX_BYTES} are read")
    try:
        value = json.loads(content)
        return _recipe(value)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise InvalidRecipe(f"{FILE}: no canonical recipe ({type(error).__name__}: {error})") from error


def _recipe(value: Mapping[str, Any]) -> Rebuilt:
    if value["format"] != FORMAT or value["format_version"] != FORMAT_VERSION:
        raise InvalidRecipe(
            f"{FILE}: is {value['format']!r} version {value['format_version']!r}; "
            f"{FORMAT!r} version {FORMAT_VERSION} is read here",
        )
    _check_known(value, _WHOLE, "the recipe")
    refs = tuple(_ref(one) for one in value["inputs"])
    stack, compose = value.get("stack"), value.get("compose")
    if stack is not None and compose is not None:
        raise InvalidRecipe(f"{FILE}: says both stack and compose")
    slices = tuple(_slice(one, refs) for one in ([value] if stack is None else stack))
    root = _composed(compose, refs) if compose is not None else slices[0] if stack is None else Stack(slices)
    tokenizer = value.get("tokenizer")
    form = Form(
        dtype=_dtype(value.get("cast")),
        layers=None if value.get("layers") is None else _number(value["layers"]),
        tokenizer=None if tokenizer is None else TokenizerPolicy.of_json(tokenizer, refs),
        heads=_heads(value.get("heads"), refs, [str(one["digest"]) for one in value["inputs"]]),
    )
    recipe = Recipe(root, form=form)
    names = tuple(str(one["name"]) for one in value["inputs"])
    return Rebuilt(recipe, refs, names, _text(value["dtype"]), _text(value["as"]))


def _heads(value: Any, refs: Sequence[Ref], digests: Sequence[str]) -> Heads | None:
    """What becomes of several heads. Raises InvalidRecipe."""
    if value in (None, "drop", "multi"):
        return None if value is None else Heads(value)
    if not isinstance(value, dict) or [*value] != ["keep"] or value["keep"] not in digests:
        raise InvalidRecipe(f"{FILE}: heads is {value!r}; expected drop, multi, or keep with the digest of an input")
    return Heads("keep", refs[digests.index(value["keep"])])


def _composed(value: Mapping[str, Any], refs: Sequence[Ref]) -> Composed:
    _check_known(value, _COMPOSE, "compose")
    for one in value["members"]:
        _check_known(one, _MEMBER, "a member")
    members = [(str(one["role"]), _weight(one["weight"]), _slice(one, refs)) for one in value["members"]]
    parameters = [(str(name), _parameter(name, given)) for name, given in value["parameters"].items()]
    try:
        return composed(str(value["operator"]), members, parameters)
    except InvalidParameter as error:
        raise InvalidRecipe(f"{FILE}: {error}") from error


def _slice(value: Mapping[str, Any], refs: Sequence[Ref]) -> Node:
    base = refs[_number(value["base"])]
    return Sum((base, *_Parts(refs, base).terms(value["sum"], 0)))


@dataclass
class _Parts:
    """Makes nodes of parts. left: how many may still be made."""

    refs: Sequence[Ref]
    base: Ref
    left: int = DEFAULT_LIMITS.terms

    def terms(self, parts: Iterable[Mapping[str, Any]], depth: int) -> tuple[Node, ...]:
        return tuple(Weighted(_weight(part["weight"]), self._leaf(part, depth), _schedules(part)) for part in parts)

    def _leaf(self, part: Mapping[str, Any], depth: int) -> Node:
        self.left -= 1
        if self.left < 0 or depth > DEFAULT_LIMITS.depth:
            raise RecipeTooLarge(f"recipe.json: has more than {DEFAULT_LIMITS.terms} parts, or is deeper than any text")
        kind = next((kind for kind in _PARTS if kind in part), None)
        if kind is None:
            raise InvalidRecipe(f"{FILE}: a part has none of {', '.join(_PARTS)}")
        _check_known(part, _PARTS[kind], f"a part with {kind!r}")
        if kind == "input":
            return self.refs[_number(part["input"])]
        if kind == "delta":
            model, base = part["delta"]
            return Delta(self.refs[_number(model)], self.refs[_number(base)])
        # a sum of one stays a sum, so that its own weight is not taken for the method's
        inputs = tuple(self._input(one, depth + 1) for one in part["inputs"])
        parameters = {str(name): _parameter(name, value) for name, value in part["parameters"].items()}
        return Call(_method(part["method"]), None, inputs, tuple(sorted(parameters.items())))

    def _input(self, one: Mapping[str, Any], depth: int) -> Node:
        _check_known(one, frozenset({"weight", "schedules", "sum"}), "an input of a method")
        # nothing times the base is nothing, and text can say it
        terms = self.terms(one["sum"], depth) or (Weighted(0.0, self.base),)
        return Weighted(_weight(one["weight"]), Sum(terms), _schedules(one))


def _check_known(value: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    more = sorted(key for key, given in value.items() if key not in known and given is not None)
    if more:
        raise InvalidRecipe(f"{FILE}: {what} says {', '.join(more)}, which this version of adapterhub does not know")


def _ref(one: Mapping[str, Any]) -> Ref:
    """The input's name, its sub-folder said by `path` alone."""
    _check_known(one, _INPUT, "an input")
    name, _, revision = str(one["name"]).partition("@")
    path = _text(one["path"]) or ""
    layers = one.get("layers")
    if layers is not None:
        first, end = map(_number, layers)
        layers = first, end
    return Ref(name, revision or None, path, layers)


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRecipe(f"{FILE}: {value!r} is no number of an input")
    return value


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRecipe(f"{FILE}: {value!r} is no weight")
    return float(value)


def _method(value: Any) -> str:
    if not isinstance(value, str) or not _METHOD.fullmatch(value):
        raise InvalidRecipe(f"{FILE}: {value!r} is no merge method")
    return value


def _schedules(part: Mapping[str, Any]) -> tuple[Schedule, ...]:
    """The further factors of a weight. Raises InvalidRecipe for what is none, or no number somewhere."""
    found = []
    for cases in part.get("schedules", ()):
        value = _schedule(cases)
        if not isinstance(value, Schedule) or not all(type(one) in (int, float) for one in value.points()):
            raise InvalidRecipe(f"{FILE}: {cases!r} is no weight that differs from tensor to tensor")
        found.append(value)
    return tuple(found)


def _schedule(cases: Any) -> Value:
    for part, points in cases:
        if not isinstance(part, str) or not all(isinstance(one, str) or math.isfinite(one) for one in points):
            raise InvalidRecipe(f"{FILE}: {cases!r} is no choice of values by tensor")
    return schedule(cases)


def _dtype(value: Any) -> str | None:
    if value is not None and value not in _FLOATS:
        raise InvalidRecipe(f"{FILE}: cast is {value!r}; expected one of {', '.join(_FLOATS)}")
    return _text(value)


def _parameter(name: str, value: Any) -> Value:
    if isinstance(value, list):
        return _schedule(value)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    raise InvalidRecipe(f"{FILE}: the parameter {name} is {value!r}, which is neither number, truth nor text")


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRecipe(f"{FILE}: {value!r} is no text")
    return value
