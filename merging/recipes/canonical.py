"""The one form of a recipe: names resolved to commits and digests, sums flat and sorted, every parameter spelled out.

Two expressions that mean the same sum of the same inputs have the same canonical text, and so the same recipe digest:
`base + a + b` and `base + b + a`, `2*(a + b)` and `2*a + 2*b`, `ties(base; a, b)` and `base + ties(a, b)`, a method
that is a weighted sum and that sum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import BaseMismatch, ExpressionError, InvalidParameter, InvalidPatch, UnknownName
from adapterhub.merging.folders import canonical_json, join, json_digest, read_json
from adapterhub.merging.methods import methods
from adapterhub.merging.patch import PatchKind
from adapterhub.merging.recipes.compositions import composition_of
from adapterhub.merging.recipes.head_policy import Heads
from adapterhub.merging.recipes.nodes import (
    Call,
    Composed,
    Delta,
    Node,
    Recipe,
    Ref,
    Stack,
    Sum,
    Weighted,
    children,
    references_of,
    rewritten,
)
from adapterhub.merging.recipes.values import (
    Schedule,
    is_scheduled,
    make_scheduled,
    parameters_json,
    schedule_json,
    weight_at,
)
from adapterhub.merging.registry import MethodSpec, find_method

__all__ = [
    "Call",
    "Delta",
    "Input",
    "Node",
    "Recipe",
    "Ref",
    "Sum",
    "Weighted",
    "canonical",
    "normalise",
    "recipe_digest",
]

FORMAT = "adapterhub.recipe"
FORMAT_VERSION = 1
MODEL = "model"
"""The kind of input that stands for all weights, and whose difference from the base counts as a patch."""


@dataclass(frozen=True)
class Input:
    """What a name was resolved to.

    name: "ns/name@<commit, 40 hex digits>", or any text that names these bytes for good. folder: its files. path: the
    sub-folder that holds the patch. kind: "model" or a patch kind. quantisation: of the base a patch was trained on,
    where its own files do not say and somebody else does. licence: as its owner declares it, for the result's card.
    has_weights: False for a model that is computed elsewhere, of which the configuration alone is known.
    """

    name: str
    folder: Folder
    path: str = ""
    kind: str = MODEL
    quantisation: str = "unknown"
    licence: str | None = None
    has_weights: bool = True


@dataclass(frozen=True)
class Patched:
    """One input, as the patch it is, or as the difference of a full model from the base."""

    ref: Ref


@dataclass(frozen=True)
class Merged:
    """A merge method that is no weighted sum of the same weights at every tensor, on inputs that are sums.

    parameters: all, defaults included, schedules among them. schedules: further factors of each input's weight, ()
    where no input has any.
    """

    method: str
    parameters: Any
    weights: tuple[float, ...]
    inputs: tuple[tuple[Part, ...], ...]
    schedules: tuple[tuple[Schedule, ...], ...] = ()

    def weights_at(self, name: str, depth: float | None) -> tuple[float, ...]:
        """The weights at one tensor."""
        if not self.schedules:
            return self.weights
        pairs = zip(self.weights, self.schedules, strict=True)
        return tuple(weight_at(weight, schedules, name, depth) for weight, schedules in pairs)

    def only(self, numbers: Sequence[int]) -> Merged:
        """The same with some of its inputs."""
        weights = tuple(self.weights[number] for number in numbers)
        inputs = tuple(self.inputs[number] for number in numbers)
        schedules = tuple(self.schedules[number] for number in numbers) if self.schedules else ()
        return replace(self, weights=weights, inputs=inputs, schedules=schedules)


Leaf: TypeAlias = Patched | Delta | Merged


@dataclass(frozen=True)
class Part:
    """weight times schedules times one leaf of a flat sum."""

    weight: float
    leaf: Leaf
    schedules: tuple[Schedule, ...] = ()

    def weight_at(self, name: str, depth: float | None) -> float:
        """The weight at one tensor."""
        return weight_at(self.weight, self.schedules, name, depth)


@dataclass(frozen=True)
class Normal:
    """A recipe's meaning: the base, and the flat sum of what is added to it, equal leaves combined, in digest order."""

    base: Ref
    parts: tuple[Part, ...]


def recipe_digest(canonical: str) -> str:
    """sha256 of the canonical text, as "sha256:<hex>"."""
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def canonical(
    recipe: Recipe,
    inputs: Mapping[Ref, Input],
    *,
    digests: Mapping[Ref, str] | None = None,
    dtype: str | None = None,
    as_kind: str | None = None,
    heads: Heads | None = None,
) -> str:
    """The canonical text, JSON: inputs by commit and digest, method, weights, parameters, and what the result shall be.

    digests: of the inputs, where the caller has read them; None reads them. dtype, as_kind: in place of what the recipe
    says of the result's, and heads likewise; where nothing is said of heads there is no such key. Raises what
    `normalise` raises.
    """
    form = recipe.form
    as_kind = as_kind or form.as_kind
    found = dict(digests) if digests is not None else {ref: input_digest(inputs[ref]) for ref in known(recipe, inputs)}
    named = named_by(recipe, inputs)
    same = aliases([*known(recipe, inputs), *named], inputs)
    if isinstance(recipe.root, Composed):
        # members are normalised one by one, and call what they share by one name
        recipe = replace(recipe, root=rewritten(recipe.root, lambda ref: same[ref]))
    normals = [normalise(one, inputs, found) for one in parts_of(recipe)]
    found |= {ref: input_digest(inputs[ref]) for ref in same.values() if ref not in found}
    order = {ref: (found[ref], inputs[ref].name, inputs[ref].path, ref.layers or ()) for ref in found}
    models = {same[ref] for ref in named}
    used = sorted({ref for normal in normals for ref in _used(normal)} | models, key=lambda ref: order[ref])
    numbers = {ref: number for number, ref in enumerate(used)}
    sums = [[_part_json(part, numbers) for part in normal.parts] for normal in normals]
    is_one = not isinstance(recipe.root, Stack | Composed)
    value = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "inputs": [_input_json(inputs[ref], found[ref], ref.layers) for ref in used],
        "base": numbers[normals[0].base],
        "sum": sums[0] if is_one else [],
        "dtype": dtype or form.result_dtype,
        "as": None if as_kind == MODEL else as_kind,
    }
    parts = [{"base": numbers[normal.base], "sum": one} for normal, one in zip(normals, sums, strict=True)]
    more: dict[str, Any] = {"cast": form.dtype, "layers": form.layers}
    more["stack"] = parts if isinstance(recipe.root, Stack) else None
    more["compose"] = composition_of(recipe).to_json(parts) if isinstance(recipe.root, Composed) else None
    heads = heads or form.heads
    more["heads"] = None if heads is None else heads.canonical(found)
    if form.tokenizer is not None:
        more["tokenizer"] = form.tokenizer.to_json({ref: numbers[one] for ref, one in same.items() if one in numbers})
    value |= {key: told for key, told in more.items() if told is not None}
    return canonical_json(value).decode()


def input_digest(one: Input) -> str:
    """The digest of the patch or model behind an input, "sha256:<hex>"; reads configurations and headers."""
    if not one.has_weights:
        return json_digest({"kind": MODEL, "config": read_json(one.folder, join(one.path, "config.json")), "files": []})
    return kind_of(one).read(one.folder, one.path, None).digest


def kind_of(one: Input) -> PatchKind:
    """The patch kind of an input. Raises InvalidPatch for one that is not merged."""
    known_kinds = patches.kinds()
    if one.kind not in known_kinds:
        raise InvalidPatch(f"{one.name}: a {one.kind!r} is not merged; known kinds are {', '.join(known_kinds)}")
    return known_kinds[one.kind]


def known(recipe: Recipe, inputs: Mapping[Ref, Input]) -> tuple[Ref, ...]:
    """What the recipe's sum names, all of it given. Raises UnknownName, which names a near one."""
    found = tuple(dict.fromkeys(references_of(recipe.root)))
    for ref in found:
        if ref not in inputs:
            near = get_close_matches(str(ref), [str(one) for one in inputs], 1)
            raise UnknownName(f"{ref}: no such input" + (f"; did you mean {near[0]}?" if near else ""))
    return found


def named_by(recipe: Recipe, inputs: Mapping[Ref, Input]) -> tuple[Ref, ...]:
    """The models that the tokenizer setting names. Raises UnknownName for one that is not given or is no model."""
    found = () if recipe.form.tokenizer is None else recipe.form.tokenizer.references()
    for ref in found:
        if ref not in inputs or inputs[ref].kind != MODEL:
            raise UnknownName(f"{ref}: the tokenizer setting names it, and no full model of that name is given")
    return found


def aliases(references: Iterable[Ref], inputs: Mapping[Ref, Input], *, are_whole: bool = False) -> Mapping[Ref, Ref]:
    """The one reference that stands for each: two names of one commit are one input, and the first stands for both.

    are_whole: whether layers of an input are that input too.
    """
    first: dict[tuple[Any, ...], Ref] = {}
    return {
        ref: first.setdefault((inputs[ref].name, inputs[ref].path, None if are_whole else ref.layers), ref)
        for ref in references
    }


def parts_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipes that a recipe is made of, each with a base of its own: members, slices, or itself.

    Raises as `composition_of` and `slices_of`.
    """
    if not isinstance(recipe.root, Composed):
        return slices_of(recipe)
    found = tuple(one.recipe for one in composition_of(recipe).members)
    for one in found:
        if isinstance(one.root, Stack):
            raise ExpressionError(str(recipe), 0, f"{one}: a stack is not served; merge it and name the repository")
        slices_of(one)
    return found


def slices_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The slices of a stack as recipes of their own, the lowest first; of any other recipe itself.

    Raises ExpressionError for layers outside of a stack, and for models without layers in one.
    """
    text = recipe.text or str(recipe)
    if not isinstance(recipe.root, Stack):
        if any(ref.layers is not None for ref in recipe.references()):
            raise ExpressionError(text, 0, "layers are named in a stack alone, as in stack(a[0:24], b[16:32])")
        return (recipe,)
    slices = tuple(replace(recipe, root=one, text="") for one in recipe.root.slices)
    for one in slices:
        counts = {ref.layers[1] - ref.layers[0] if ref.layers else 0 for ref in references_of(one.root)}
        if 0 in counts or len(counts) > 1:
            raise ExpressionError(text, 0, f"{one}: all of a slice has as many layers, as in a[0:8] + b[8:16]")
    return slices


def base_of(recipe: Recipe, inputs: Mapping[Ref, Input]) -> Ref:
    """The base: the first full model in the text outside delta(). Raises BaseMismatch where there is none."""
    for ref in _outside_deltas(recipe.root):
        if inputs[ref].kind == MODEL:
            return ref
    raise BaseMismatch(f"{recipe}: names no full model; begin with the base, as in org/base + {recipe}")


def _outside_deltas(node: Node) -> Iterator[Ref]:
    if isinstance(node, Ref):
        yield node
    for child in () if isinstance(node, Delta) else children(node):
        yield from _outside_deltas(child)


def normalise(recipe: Recipe, inputs: Mapping[Ref, Input], digests: Mapping[Ref, str]) -> Normal:
    """The meaning of a recipe. The first full model is the base; a further full model M stands for M - base.

    Raises UnknownName, UnknownMethod, InvalidParameter, and BaseMismatch where the base has a weight or another base is
    named.
    """
    references = known(recipe, inputs)
    same = aliases(references, inputs)
    base = same[base_of(recipe, inputs)]
    parts = _Flattening(inputs, digests, same, base).parts(recipe.root, is_top=True)
    return Normal(base, parts)


@dataclass(frozen=True)
class _Flattening:
    """Takes a recipe apart into weights and leaves. same: the one reference that stands for each."""

    inputs: Mapping[Ref, Input]
    digests: Mapping[Ref, str]
    same: Mapping[Ref, Ref]
    base: Ref

    def parts(self, node: Node, *, is_top: bool) -> tuple[Part, ...]:
        """The node as a flat sum: equal leaves combined, zeros dropped, in the order of digests."""
        weights: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        found: dict[tuple[str, tuple[str, ...]], Part] = {}
        for part in self._flat(node, _Factor(), is_top):
            key = self._key(part.leaf), tuple(map(str, part.schedules))
            found[key] = part
            weights.setdefault(key, []).append(part.weight)
        # fsum rounds once, so the sum does not depend on the order in the text.
        summed = [replace(found[key], weight=math.fsum(weights[key])) for key in sorted(found)]
        return tuple(part for part in summed if part.weight != 0.0)

    def _flat(self, node: Node, factor: _Factor, is_top: bool) -> Iterator[Part]:
        match node:
            case Ref():
                yield from self._reference(self.same[node], factor, is_top)
            case Weighted(weight=weight, node=inner, schedules=schedules):
                yield from self._flat(inner, factor.times(weight, schedules), is_top)
            case Sum(terms=terms):
                for term in terms:
                    yield from self._flat(term, factor, is_top)
            case Delta():
                yield from self._difference(node, factor)
            case Call():
                yield from self._call(node, factor, is_top)
            case Stack():
                raise ExpressionError(str(node), 0, "a stack is a whole model and stands alone")
            case Composed(operator=operator):
                raise ExpressionError(str(node), 0, f"{operator}(...) composes whole models and stands alone")

    def _reference(self, ref: Ref, factor: _Factor, is_top: bool) -> Iterator[Part]:
        if ref != self.base:
            yield factor.part(Patched(ref))
        elif is_top and factor != _Factor():
            raise BaseMismatch(
                f"{ref}: the first full model is the base, to which the rest is added, so it takes no weight; "
                f"found {factor}; to average models write linear({ref}; ...)"
            )

    def _difference(self, node: Delta, factor: _Factor) -> Iterator[Part]:
        model, base = self.same[node.model], self.same[node.base]
        for ref in (model, base):
            if self.inputs[ref].kind != MODEL:
                raise BaseMismatch(f"{node}: {ref} is a {self.inputs[ref].kind}; delta takes two full models")
        if base == self.base:
            yield from self._reference(model, factor, is_top=False)
        elif model != base:
            yield factor.part(Delta(model, base))

    def _call(self, node: Call, factor: _Factor, is_top: bool) -> Iterator[Part]:
        spec = find_method(node.method, methods())
        parameters = make_scheduled(spec.parameters, dict(node.parameters), node.method)
        if node.base is not None:
            self._check_base(node, factor, is_top)
        weights = tuple(one.weight if isinstance(one, Weighted) else 1.0 for one in node.inputs)
        schedules = tuple(one.schedules if isinstance(one, Weighted) else () for one in node.inputs)
        if not is_scheduled(parameters):
            spec.check_inputs(weights, parameters)
        elif spec.acts_on is not None:
            raise InvalidParameter(f"{spec.name}: its parameters are one choice for all tensors; found schedules")
        if any(schedules) and not spec.takes_weights:
            raise InvalidParameter(
                f"{spec.name}: takes no weights, and found {', '.join(map(str, sum(schedules, ())))}"
            )
        inner = (one.node if isinstance(one, Weighted) else one for one in node.inputs)
        inputs = tuple(self.parts(one, is_top=False) for one in inner)
        if any(schedules) or is_scheduled(parameters):
            yield factor.part(self._merged(spec, parameters, weights, inputs, schedules))
            return
        spec.check(parameters)
        if spec.coefficients is None:
            yield factor.part(self._merged(spec, parameters, weights, inputs, ()))
            return
        for share, parts in zip(spec.coefficients(weights, parameters), inputs, strict=True):
            for part in parts:
                yield factor.times(share, ()).times(part.weight, part.schedules).part(part.leaf)

    def _merged(
        self,
        spec: MethodSpec,
        parameters: Any,
        weights: tuple[float, ...],
        inputs: tuple[tuple[Part, ...], ...],
        schedules: tuple[tuple[Schedule, ...], ...],
    ) -> Merged:
        found = Merged(spec.name, parameters, weights, inputs, schedules if any(schedules) else ())
        if "commutative" not in spec.laws:
            return found

        def order(number: int) -> tuple[Any, ...]:
            told = [str(one) for one in found.schedules[number]] if found.schedules else []
            return self._sum_key(inputs[number]), weights[number], told

        return found.only(sorted(range(len(weights)), key=order))

    def _check_base(self, node: Call, factor: _Factor, is_top: bool) -> None:
        base = node.base
        if not isinstance(base, Ref) or self.same[base] != self.base:
            raise BaseMismatch(f"{node.method}: starts from {base}, the recipe's base is {self.base}; they must be one")
        if is_top and factor != _Factor():
            raise BaseMismatch(f'{factor}*{node.method}({base}; ...): the base takes no weight; leave out "{base};"')

    def _key(self, leaf: Leaf) -> str:
        """What orders leaves and tells equal ones: an input's digest comes first, so patches are in digest order."""
        match leaf:
            case Patched(ref=ref):
                layers = "" if ref.layers is None else f" {ref.layers[0]}:{ref.layers[1]}"
                return f"{self.digests[ref]} {self.inputs[ref].name} {self.inputs[ref].path}{layers}"
            case Delta(model=model, base=base):
                return json_digest(["delta", self._key(Patched(model)), self._key(Patched(base))])
            case Merged(method=method, parameters=parameters, weights=weights, inputs=inputs, schedules=schedules):
                sums = [self._sum_key(parts) for parts in inputs]
                told = [[list(map(schedule_json, one)) for one in schedules]] if schedules else []
                return json_digest([method, parameters_json(parameters), weights, sums, *told])

    def _sum_key(self, parts: Iterable[Part]) -> list[Any]:
        return [[self._key(part.leaf), part.weight, *map(str, part.schedules)] for part in parts]


@dataclass(frozen=True)
class _Factor:
    """What stands before a node, multiplied out. As text: as it is written."""

    weight: float = 1.0
    schedules: tuple[Schedule, ...] = ()

    def times(self, weight: float, schedules: Iterable[Schedule]) -> _Factor:
        return _Factor(self.weight * weight, (*self.schedules, *schedules))

    def part(self, leaf: Leaf) -> Part:
        return Part(self.weight, leaf, tuple(sorted(self.schedules, key=str)))

    def __str__(self) -> str:
        return "*".join([f"{self.weight:g}", *map(str, self.schedules)])


def _used(normal: Normal) -> set[Ref]:
    found = {normal.base}
    pending = list(normal.parts)
    while pending:
        match pending.pop().leaf:
            case Patched(ref=ref):
                found.add(ref)
            case Delta(model=model, base=base):
                found |= {model, base}
            case Merged(inputs=inputs):
                pending += [part for parts in inputs for part in parts]
    return found


def _input_json(one: Input, digest: str, layers: tuple[int, int] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": one.name, "path": one.path, "kind": one.kind, "digest": digest}
    return found if layers is None else found | {"layers": list(layers)}


def _part_json(part: Part, numbers: Mapping[Ref, int]) -> dict[str, Any]:
    match part.leaf:
        case Patched(ref=ref):
            leaf: dict[str, Any] = {"input": numbers[ref]}
        case Delta(model=model, base=base):
            leaf = {"delta": [numbers[model], numbers[base]]}
        case Merged(method=method, parameters=parameters, weights=weights, inputs=inputs, schedules=schedules):
            sums = [[_part_json(one, numbers) for one in parts] for parts in inputs]
            told = [_schedules_json(one) for one in schedules] or [{}] * len(sums)
            merged = [{"weight": w, **more, "sum": one} for w, more, one in zip(weights, told, sums, strict=True)]
            leaf = {"method": method, "parameters": parameters_json(parameters), "inputs": merged}
    return {"weight": part.weight, **_schedules_json(part.schedules), **leaf}


def _schedules_json(schedules: Iterable[Schedule]) -> dict[str, Any]:
    """Further factors of a weight, left out where there are none."""
    found = [schedule_json(one) for one in schedules]
    return {"schedules": found} if found else {}
