"""From what a recipe file says of one merge to the node that means it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.merging.errors import InvalidParameter, RecipeFileError
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.fields import nearest
from adapterhub.merging.recipes.mergekit import IGNORED, KNOWN, Setting, dialect_of
from adapterhub.merging.recipes.nodes import Call, Node, Ref, Sum, total, weighted
from adapterhub.merging.recipes.precedence import Scope, resolved
from adapterhub.merging.recipes.values import Schedule, Value, is_numeric, make_scheduled
from adapterhub.merging.registry import parameters_of


@dataclass(frozen=True)
class Model:
    """A model of a recipe file: a full model or patch, and a LoRA that is added to it."""

    ref: Ref
    lora: Ref | None = None

    @property
    def terms(self) -> tuple[Ref, ...]:
        return (self.ref,) if self.lora is None else (self.ref, self.lora)

    def with_layers(self, layers: tuple[int, int]) -> Model:
        """Some layers of the model, and of its LoRA."""
        lora = None if self.lora is None else replace(self.lora, layers=layers)
        return Model(replace(self.ref, layers=layers), lora)


@dataclass(frozen=True)
class Source:
    """One input of a merge. where: its place in the file. scopes: its parameters, the nearest first."""

    model: Model
    where: str
    scopes: tuple[Scope, ...]


@dataclass(frozen=True)
class Group:
    """Models that are merged with one another. base: that of the file or slice. scopes: what all of them share."""

    method: str
    sources: tuple[Source, ...]
    base: Model | None
    where: str
    scopes: tuple[Scope, ...]
    seed: int | None = None


def built(group: Group) -> Node:
    """The node that means the merge, with its base. Raises RecipeFileError."""
    return _Building(group).node()


def takes_base(method: str) -> str:
    """Whether a method takes its base apart, as an input, or optionally: `Dialect.base`."""
    return dialect_of(method).base


def passed_over(group: Group) -> list[str]:
    """Sentences on parameters that the method does not use. Raises RecipeFileError for such as no method has."""
    dialect, notes = dialect_of(group.method), []
    used = {*dialect.settings, *(["weight"] if dialect.weights != "none" else [])}
    for place, scope in dict.fromkeys((place, tuple(scope)) for one in group.sources for place, scope in one.scopes):
        for name in scope:
            if name in IGNORED:
                notes.append(f"{place}.{name} has no effect: it {IGNORED[name]}")
            elif name not in used and name in KNOWN:
                notes.append(f"{place}.{name} has no effect: {group.method} does not use it")
            elif name not in used:
                raise RecipeFileError(f"{place}.{name}", f"no parameter of {group.method}; {nearest(name, used)}")
    return list(dict.fromkeys(notes))


class _Building:
    """Builds the node of one group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._spec = methods()[group.method]
        self._dialect = dialect_of(group.method)
        self._base, self._sources = self._parted()

    def _parted(self) -> tuple[Model, tuple[Source, ...]]:
        """The model that deltas are taken from, and the inputs."""
        group, base = self._group, self._group.base
        if self._dialect.base == "apart" and base is None:
            raise RecipeFileError(
                group.where, f"{group.method} merges what models have more than a base; name it as base_model"
            )
        inputs = group.sources
        if base is not None and self._dialect.base != "input":
            inputs = tuple(one for one in inputs if one.model != base)
        if base is None or (self._dialect.base == "input" and not any(one.model == base for one in inputs)):
            base = inputs[0].model
        return base, inputs

    @property
    def _is_apart(self) -> bool:
        """Whether deltas are taken from a base that is no input."""
        return self._dialect.base == "apart" or (self._dialect.base == "optional" and self._group.base is not None)

    def node(self) -> Node:
        if not self._sources:
            return total(self._base.terms)
        self._check_number()
        weights = [self._weight(one) for one in self._sources]
        shared = self._shared()
        own = [self._own(one) for one in self._sources]
        inputs = [self._input(one.model) for one in self._sources]
        if any(one != own[0] for one in own):
            return self._placed(self._split(inputs, weights, own, shared))
        if self._dialect.scales_base and shared.get("normalize") is False:
            return self._placed(self._scaled(inputs, weights))
        parameters = {**shared, **own[0], **self._seed(self._group.method)}
        if self._dialect.base == "optional" and not self._is_apart:
            parameters["of"] = "weights"
        return self._placed(self._call(self._group.method, inputs, weights, parameters))

    def _check_number(self) -> None:
        try:
            self._spec.check_inputs([1.0] * len(self._sources), self._spec.parameters())
        except InvalidParameter as error:
            base = f"; its base is {self._base.ref}" if self._is_apart else ""
            raise RecipeFileError(self._group.where, f"{error}{base}") from error

    def _weight(self, source: Source) -> Value:
        if self._dialect.weights == "none":
            return 1.0
        return resolved("weight", source.scopes, Setting("weight", self._dialect.weight), source.where)

    def _shared(self) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for name, setting in self._dialect.settings.items():
            if setting.is_own:
                continue
            value = resolved(name, self._group.scopes, setting, self._group.where)
            if setting.only is None:
                found[setting.ours] = value
            elif value != setting.only:
                raise RecipeFileError(
                    self._group.where, f"{self._group.method} has {name} {str(setting.only).lower()} alone here"
                )
        return found

    def _own(self, source: Source) -> dict[str, Value]:
        settings = {name: one for name, one in self._dialect.settings.items() if one.is_own}
        return {one.ours: resolved(name, source.scopes, one, source.where) for name, one in settings.items()}

    def _seed(self, method: str) -> dict[str, Value]:
        takes_it = any(one.name == "seed" for one in parameters_of(methods()[method].parameters))
        return {"seed": float(self._group.seed)} if takes_it and self._group.seed is not None else {}

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def _input(self, model: Model) -> Node:
        """An input as what it has more than the base: a LoRA of the base's own is no part of that."""
        lora = self._base.lora
        if lora is None or not self._is_apart:
            return total(model.terms)
        kept = [one for one in model.terms if one != lora]
        return total(kept if len(kept) < len(model.terms) else [*kept, weighted(-1.0, lora)])

    def _placed(self, change: Node) -> Node:
        """The change put on the base; where that has a LoRA, what the method does stands on both."""
        ref, lora = self._base.ref, self._base.lora
        if lora is not None and self._is_apart:
            if self._spec.takes_site:
                return Call("sequence", ref, (lora, change))
            return total([ref, lora, change])
        if isinstance(change, Call):
            return replace(change, base=ref)
        terms = change.terms if isinstance(change, Sum) else (change,)
        return total([ref, *(one for one in terms if one != ref)])

    def _split(
        self,
        inputs: Sequence[Node],
        weights: Sequence[Value],
        own: Sequence[Mapping[str, Value]],
        shared: Mapping[str, Value],
    ) -> Node:
        """Each input through the inner method with its own parameters, and the results through the outer one."""
        dialect = self._dialect
        assert dialect.inner is not None  # a method with own parameters and several inputs has both
        assert dialect.outer is not None
        outside = {name: shared[name] for name in ("scale", "normalize")}
        inside = {name: value for name, value in shared.items() if name not in outside} | self._seed(dialect.inner)
        if dialect.outer_words and isinstance(outside["normalize"], bool):
            outside["normalize"] = dialect.outer_words[0 if outside["normalize"] else 1]
        pairs = zip(inputs, own, strict=True)
        calls = [self._call(dialect.inner, [node], [1.0], {**inside, **parameters}) for node, parameters in pairs]
        return self._call(dialect.outer, calls, weights, outside)

    def _scaled(self, inputs: Sequence[Node], weights: Sequence[Value]) -> Node:
        """Σ wᵢ·Mᵢ without division: the weighted mean, times the sum of the weights."""
        numbers = [one for one in weights if isinstance(one, float)]
        if len(numbers) < len(weights) or abs(sum(numbers)) < 1e-8:
            raise RecipeFileError(
                self._group.where,
                "normalize is false, where the base's weights count too: here the weights must be numbers whose sum is "
                "not 0; use task_arithmetic to add what models have more than a base",
            )
        mean = self._call(self._group.method, inputs, weights, {})
        return self._call("passthrough", [mean], [1.0], {"scale": sum(numbers)})

    def _call(
        self, method: str, inputs: Sequence[Node], weights: Sequence[Value], parameters: Mapping[str, Value]
    ) -> Node:
        """A call without parameters that are our defaults; the one input itself where the method leaves it as it is."""
        spec = methods()[method]
        try:
            made = make_scheduled(spec.parameters, parameters, method)
        except InvalidParameter as error:
            raise RecipeFileError(self._group.where, str(error)) from error
        found = {one.name: getattr(made, one.name) for one in parameters_of(spec.parameters)}
        if len(inputs) == 1 and weights[0] == 1.0 and _is_identity(method, found):
            return inputs[0]
        defaults = {one.name: one.default for one in parameters_of(spec.parameters)}
        told = tuple(sorted((name, _plain(value)) for name, value in found.items() if value != defaults[name]))
        return Call(method, None, tuple(map(_times, weights, inputs)), told)


def _is_identity(method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a method gives back one patch of weight 1, as its laws say."""
    spec = methods()[method]
    if "identity" in spec.laws:
        return True
    if "identity" not in spec.laws_at:
        return False
    # a law that holds at some parameters says nothing of the others than that they have their defaults
    needed = {one.name: one.default for one in parameters_of(spec.parameters)} | dict(spec.laws_at["identity"])
    return parameters == needed


def _plain(value: Any) -> Any:
    """A parameter as text gives it: whole numbers are numbers as others are."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _times(weight: Value, node: Node) -> Node:
    assert is_numeric(weight)  # weights are read as numbers
    return weighted(1.0, node, [weight]) if isinstance(weight, Schedule) else weighted(float(weight), node)
