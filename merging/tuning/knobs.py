"""The numbers of a recipe that a search may change, and the recipe at other values of them. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.nodes import Call, Node, Recipe, Ref, Sum, Weighted, total, weighted
from adapterhub.merging.recipes.values import number_text
from adapterhub.merging.registry import Parameter, find_method, parameters_of

WEIGHTS = (-1.5, 1.5)
"""The range of weights where none is given. Source: LoraHub, arXiv:2307.13269 sec. 3.3."""

DIGITS = 4
"""Significant digits of a value that is tried, so that the recipe found can be read and typed."""

_OPEN_END = 0.01
"""How far inside an open end of a parameter's range the search stays, as a share of the range."""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Knob:
    """One number of a recipe. name: the input's, or "method.parameter"; low <= start <= high."""

    name: str
    start: float
    low: float
    high: float
    is_weight: bool = True
    is_whole: bool = False

    def value(self, at: float) -> float:
        """The value at a place in [0, 1] of the range, rounded to DIGITS."""
        value = self.low + min(1.0, max(0.0, at)) * (self.high - self.low)
        rounded = float(round(value)) if self.is_whole else float(f"{value:.{DIGITS}g}")
        return min(self.high, max(self.low, rounded))

    @property
    def start_at(self) -> float:
        """The place of the start in the range."""
        return (self.start - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Space:
    """A recipe and its knobs, in the order of the text."""

    recipe: Recipe
    base: Ref
    knobs: tuple[Knob, ...]
    weights: Bounds
    parameters: Mapping[str, Bounds | None]

    @property
    def start(self) -> dict[str, float]:
        """The recipe's own values."""
        return {knob.name: knob.start for knob in self.knobs}

    def point(self, places: Sequence[float]) -> dict[str, float]:
        """Values by the knobs' names, at places in [0, 1]."""
        return {knob.name: knob.value(float(at)) for knob, at in zip(self.knobs, places, strict=True)}

    def recipe_at(self, point: Mapping[str, float]) -> Recipe:
        """The recipe with these values in place of its own."""
        walk = _Walk(self.base, self.weights, self.parameters, lambda knob: point[knob.name])
        root = walk.term(self.recipe.root)
        return Recipe(root, str(root))

    def mean_weight(self, point: Mapping[str, float]) -> float:
        """mean |w| over the weights among the knobs, 0 without any."""
        sizes = [abs(point[knob.name]) for knob in self.knobs if knob.is_weight]
        return sum(sizes) / len(sizes) if sizes else 0.0


def space(
    recipe: Recipe, base: Ref, *, weights: Bounds = WEIGHTS, parameters: Mapping[str, Bounds | None] | None = None
) -> Space:
    """The knobs of a recipe: the weight of each input but the base, and the named parameters of its methods.

    weights: lowest and highest weight. parameters: by name the range to search, None for the parameter's own. A method
    whose inputs take no weights, and one that is written with a factor, has the factor as a knob. Raises
    InvalidParameter where there is nothing to search, and for a start or a range that makes no sense.
    """
    wanted = dict(parameters or {})
    found: dict[str, Knob] = {}
    walk = _Walk(base, weights, wanted, lambda knob: found.setdefault(knob.name, knob).start)
    _check_bounds("the weights", weights)
    walk.term(recipe.root)
    missing = wanted.keys() - {
        name.partition("#")[0].rpartition(".")[2] for name, k in found.items() if not k.is_weight
    }
    if missing:
        raise InvalidParameter(f"{min(missing)}: no method of {recipe} has a parameter of that name")
    if not found:
        raise InvalidParameter(f"{recipe}: has no weight to search; add a patch to the base")
    return Space(recipe, base, tuple(found.values()), weights, wanted)


class _Walk:
    """Goes through a recipe from left to right and puts what `ask` gives for each knob in its place."""

    def __init__(
        self, base: Ref, weights: Bounds, parameters: Mapping[str, Bounds | None], ask: Callable[[Knob], float]
    ) -> None:
        self._base = base
        self._weights = weights
        self._parameters = parameters
        self._ask = ask
        self._names: dict[str, int] = {}
        self.unseen = set(parameters)

    def term(self, node: Node) -> Node:
        """A term of a sum, or an input of a method."""
        factor, inner = (node.weight, node.node) if isinstance(node, Weighted) else (1.0, node)
        if isinstance(inner, Sum):
            return weighted(factor, total(map(self.term, inner.terms)))
        if inner == self._base:
            return node
        if not isinstance(inner, Call):
            return weighted(self._weight(str(inner), factor), inner)
        called = self._call(inner)
        has_factor = isinstance(node, Weighted) or not find_method(inner.method, methods()).takes_weights
        return weighted(self._weight(inner.method, factor), called) if has_factor else called

    def _call(self, node: Call) -> Call:
        spec = find_method(node.method, methods())
        inputs = tuple(map(self.term, node.inputs)) if spec.takes_weights else node.inputs
        given = dict(node.parameters)
        for one in parameters_of(spec.parameters):
            if one.name in self._parameters:
                given[one.name] = self._parameter(spec.name, one, given.get(one.name, one.default))
        return replace(node, inputs=inputs, parameters=tuple(sorted(given.items())))

    def _weight(self, name: str, start: float) -> float:
        return self._asked(Knob(self._unique(name), start, *self._weights))

    def _parameter(self, method: str, one: Parameter, start: float | bool | str) -> float:
        name = f"{method}.{one.name}"
        if one.type not in ("float", "int") or isinstance(start, str):
            raise InvalidParameter(f"{name}: is {one.range}, no number; write the value that you want")
        low, high = self._parameters[one.name] or _range(name, one)
        _check_bounds(name, (low, high))
        one.check(low, method)
        one.check(high, method)
        self.unseen.discard(one.name)
        knob = Knob(self._unique(name), float(start), low, high, is_weight=False, is_whole=one.type == "int")
        return self._asked(knob)

    def _asked(self, knob: Knob) -> float:
        if not knob.low <= knob.start <= knob.high:
            raise InvalidParameter(
                f"{knob.name}: starts at {number_text(knob.start)}, outside of {number_text(knob.low)} to "
                f"{number_text(knob.high)}; change the start in the expression, or the range"
            )
        return self._ask(knob)

    def _unique(self, name: str) -> str:
        self._names[name] = self._names.get(name, 0) + 1
        return name if self._names[name] == 1 else f"{name}#{self._names[name]}"


def _range(name: str, one: Parameter) -> Bounds:
    if one.low is None or one.high is None:
        raise InvalidParameter(f"{name}: its range {one.range} has no end; say where to search, as {name}=0:1")
    margin = _OPEN_END * (one.high - one.low)
    return one.low + margin * one.is_low_open, one.high - margin * one.is_high_open


def _check_bounds(name: str, bounds: Bounds) -> None:
    if not (all(map(isfinite, bounds)) and bounds[0] < bounds[1]):
        raise InvalidParameter(f"{name}: {bounds[0]:g} to {bounds[1]:g} is no range; the lower end comes first")
