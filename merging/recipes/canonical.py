"""The one form of a recipe: names resolved to commits and digests, sums flat and sorted, every parameter spelled out.

Two expressions that mean the same sum of the same inputs have the same canonical text, and so the same recipe digest:
`base + a + b` and `base + b + a`, `2*(a + b)` and `2*a + 2*b`, `ties(base; a, b)` and `base + ties(a, b)`, a method
that is a weighted sum and that sum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import BaseMismatch, InvalidPatch, UnknownName
from adapterhub.merging.folders import canonical_json, json_digest
from adapterhub.merging.methods import methods
from adapterhub.merging.patch import PatchKind
from adapterhub.merging.recipes.nodes import Call, Delta, Node, Recipe, Ref, Sum, Weighted, children
from adapterhub.merging.registry import find_method, make_parameters

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
    where its own files do not say and somebody else does.
    """

    name: str
    folder: Folder
    path: str = ""
    kind: str = MODEL
    quantisation: str = "unknown"


@dataclass(frozen=True)
class Patched:
    """One input, as the patch it is, or as the difference of a full model from the base."""

    ref: Ref


@dataclass(frozen=True)
class Merged:
    """A merge method that is no weighted sum, on inputs that are sums. parameters: all, defaults included."""

    method: str
    parameters: Any
    weights: tuple[float, ...]
    inputs: tuple[tuple[Part, ...], ...]


Leaf: TypeAlias = Patched | Delta | Merged


@dataclass(frozen=True)
class Part:
    """weight times one leaf of a flat sum."""

    weight: float
    leaf: Leaf


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
    heads: str | Mapping[str, str] | None = None,
) -> str:
    """The canonical text, JSON: inputs by commit and digest, method, weights, parameters, and what the result shall be.

    digests: of the inputs, where the caller has read them; None reads them. heads: what becomes of several heads, by
    the digest of the one that stays; a recipe that says nothing of it has no such key. Raises what `normalise` raises.
    """
    found = dict(digests) if digests is not None else {ref: input_digest(inputs[ref]) for ref in known(recipe, inputs)}
    normal = normalise(recipe, inputs, found)
    used = sorted(_used(normal), key=lambda ref: (found[ref], inputs[ref].name, inputs[ref].path))
    numbers = {ref: number for number, ref in enumerate(used)}
    value = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "inputs": [_input_json(inputs[ref], found[ref]) for ref in used],
        "base": numbers[normal.base],
        "sum": [_part_json(part, numbers) for part in normal.parts],
        "dtype": dtype,
        "as": as_kind,
    } | ({} if heads is None else {"heads": heads})
    return canonical_json(value).decode()


def input_digest(one: Input) -> str:
    """The digest of the patch or model behind an input, "sha256:<hex>"; reads configurations and headers."""
    return kind_of(one).read(one.folder, one.path, None).digest


def kind_of(one: Input) -> PatchKind:
    """The patch kind of an input. Raises InvalidPatch for one that is not merged."""
    known_kinds = patches.kinds()
    if one.kind not in known_kinds:
        raise InvalidPatch(f"{one.name}: a {one.kind!r} is not merged; known kinds are {', '.join(known_kinds)}")
    return known_kinds[one.kind]


def known(recipe: Recipe, inputs: Mapping[Ref, Input]) -> tuple[Ref, ...]:
    """The recipe's references, all of them given. Raises UnknownName, which names a near one."""
    for ref in recipe.references():
        if ref not in inputs:
            near = get_close_matches(str(ref), [str(one) for one in inputs], 1)
            raise UnknownName(f"{ref}: no such input" + (f"; did you mean {near[0]}?" if near else ""))
    return recipe.references()


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
    # Two names of one commit are one input: the first of them stands for both.
    first: dict[tuple[str, str], Ref] = {}
    same = {ref: first.setdefault((inputs[ref].name, inputs[ref].path), ref) for ref in references}
    base = same[base_of(recipe, inputs)]
    parts = _Flattening(inputs, digests, same, base).parts(recipe.root, 1.0, is_top=True)
    return Normal(base, parts)


@dataclass(frozen=True)
class _Flattening:
    """Takes a recipe apart into weights and leaves. same: the one reference that stands for each."""

    inputs: Mapping[Ref, Input]
    digests: Mapping[Ref, str]
    same: Mapping[Ref, Ref]
    base: Ref

    def parts(self, node: Node, weight: float, *, is_top: bool) -> tuple[Part, ...]:
        """The node as a flat sum: equal leaves combined, zeros dropped, in the order of digests."""
        weights: dict[str, list[float]] = {}
        leaves: dict[str, Leaf] = {}
        for part in self._flat(node, weight, is_top):
            key = self._key(part.leaf)
            leaves[key] = part.leaf
            weights.setdefault(key, []).append(part.weight)
        # fsum rounds once, so the sum does not depend on the order in the text.
        summed = [Part(math.fsum(weights[key]), leaves[key]) for key in sorted(leaves)]
        return tuple(part for part in summed if part.weight != 0.0)

    def _flat(self, node: Node, weight: float, is_top: bool) -> Iterator[Part]:
        match node:
            case Ref():
                yield from self._reference(self.same[node], weight, is_top)
            case Weighted(weight=factor, node=inner):
                yield from self._flat(inner, weight * factor, is_top)
            case Sum(terms=terms):
                for term in terms:
                    yield from self._flat(term, weight, is_top)
            case Delta():
                yield from self._difference(node, weight)
            case Call():
                yield from self._call(node, weight, is_top)

    def _reference(self, ref: Ref, weight: float, is_top: bool) -> Iterator[Part]:
        if ref != self.base:
            yield Part(weight, Patched(ref))
        elif is_top and weight != 1.0:
            raise BaseMismatch(
                f"{ref}: the first full model is the base, to which the rest is added, so it takes no weight; "
                f"found {weight:g}; to average models write linear({ref}; ...)"
            )

    def _difference(self, node: Delta, weight: float) -> Iterator[Part]:
        model, base = self.same[node.model], self.same[node.base]
        for ref in (model, base):
            if self.inputs[ref].kind != MODEL:
                raise BaseMismatch(f"{node}: {ref} is a {self.inputs[ref].kind}; delta takes two full models")
        if base == self.base:
            yield from self._reference(model, weight, is_top=False)
        elif model != base:
            yield Part(weight, Delta(model, base))

    def _call(self, node: Call, weight: float, is_top: bool) -> Iterator[Part]:
        spec = find_method(node.method, methods())
        parameters = make_parameters(spec.parameters, dict(node.parameters), node.method)
        if node.base is not None:
            self._check_base(node, weight, is_top)
        weights = tuple(one.weight if isinstance(one, Weighted) else 1.0 for one in node.inputs)
        spec.check_inputs(weights)
        spec.check(parameters)
        inner = (one.node if isinstance(one, Weighted) else one for one in node.inputs)
        inputs = tuple(self.parts(one, 1.0, is_top=False) for one in inner)
        if spec.coefficients is not None:
            factors = spec.coefficients(weights, parameters)
            for factor, parts in zip(factors, inputs, strict=True):
                for part in parts:
                    yield Part(weight * factor * part.weight, part.leaf)
            return
        pairs = list(zip(weights, inputs, strict=True))
        if "commutative" in spec.laws:
            pairs.sort(key=lambda pair: (self._sum_key(pair[1]), pair[0]))
        yield Part(weight, Merged(spec.name, parameters, *zip(*pairs, strict=True)))

    def _check_base(self, node: Call, weight: float, is_top: bool) -> None:
        base = node.base
        if not isinstance(base, Ref) or self.same[base] != self.base:
            raise BaseMismatch(f"{node.method}: starts from {base}, the recipe's base is {self.base}; they must be one")
        if is_top and weight != 1.0:
            raise BaseMismatch(f'{weight:g}*{node.method}({base}; ...): the base takes no weight; leave out "{base};"')

    def _key(self, leaf: Leaf) -> str:
        """What orders leaves and tells equal ones: an input's digest comes first, so patches are in digest order."""
        match leaf:
            case Patched(ref=ref):
                return f"{self.digests[ref]} {self.inputs[ref].name} {self.inputs[ref].path}"
            case Delta(model=model, base=base):
                return json_digest(["delta", self._key(Patched(model)), self._key(Patched(base))])
            case Merged(method=method, parameters=parameters, weights=weights, inputs=inputs):
                sums = [self._sum_key(parts) for parts in inputs]
                return json_digest([method, asdict(parameters), weights, sums])

    def _sum_key(self, parts: Iterable[Part]) -> list[Any]:
        return [[self._key(part.leaf), part.weight] for part in parts]


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


def _input_json(one: Input, digest: str) -> dict[str, str]:
    return {"name": one.name, "path": one.path, "kind": one.kind, "digest": digest}


def _part_json(part: Part, numbers: Mapping[Ref, int]) -> dict[str, Any]:
    match part.leaf:
        case Patched(ref=ref):
            leaf: dict[str, Any] = {"input": numbers[ref]}
        case Delta(model=model, base=base):
            leaf = {"delta": [numbers[model], numbers[base]]}
        case Merged(method=method, parameters=parameters, weights=weights, inputs=inputs):
            sums = [[_part_json(one, numbers) for one in parts] for parts in inputs]
            merged = [{"weight": weight, "sum": one} for weight, one in zip(weights, sums, strict=True)]
            leaf = {"method": method, "parameters": asdict(parameters), "inputs": merged}
    return {"weight": part.weight, **leaf}
