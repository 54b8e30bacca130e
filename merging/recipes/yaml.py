"""Recipe files: mergekit's YAML as it is, and what we add to it, read into the recipes that expressions give.

mergekit's keys: merge_method, models or slices or modules, base_model, parameters, dtype, out_dtype, tokenizer_source,
tokenizer, chat_template, name. Ours: expression in place of merge_method, layers beside it, `as`, heads, seed; and any
patch may stand where a model does.
Source: mergekit 0.1.5 `config.py`, `plan.py`, `common.ModelReference`; docs/recipes.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.merging.errors import RecipeFileError, UnknownMethod
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.building import Group, Model, Source, built, passed_over, takes_base
from adapterhub.merging.recipes.documents import FILE, read_document, shown
from adapterhub.merging.recipes.expression import check_terms, parse
from adapterhub.merging.recipes.fields import check_keys, layers_of, list_of, word_of
from adapterhub.merging.recipes.head_policy import Heads
from adapterhub.merging.recipes.modules import base_of, by_module
from adapterhub.merging.recipes.names import Names
from adapterhub.merging.recipes.nodes import Form, Node, Recipe, Stack
from adapterhub.merging.recipes.precedence import Scope
from adapterhub.merging.recipes.tokenizer_settings import TokenizerSettings, lines_of
from adapterhub.merging.registry import find_method

_INPUTS = ("models", "slices", "modules")
_FORM = ("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "as", "heads", "name")
_TOP = ("merge_method", "expression", "layers", "base_model", "parameters", "seed", *_INPUTS, *_FORM)
_EXPERTS = ("experts", "shared_experts", "gate_mode", "experts_per_token")


def read(text: str) -> Recipe:
    """The recipe of a file's text. Names are not looked up.

    Raises RecipeFileError, which says where in the file and what was expected; UnknownMethod, which names a near one;
    ExpressionError under `expression`; RecipeTooLarge past the limits.
    """
    document = read_document(text)
    experts = [key for key in _EXPERTS if key in document]
    if experts:
        raise RecipeFileError(
            experts[0], "belongs to mergekit-moe, which makes a mixture of experts; a recipe file merges models"
        )
    check_keys(document, _TOP, FILE)
    reading = _Reading(document)
    root = reading.expression() if "expression" in document else reading.root()
    check_terms(root)
    return Recipe(root, text, reading.form(), tuple(reading.names.notes), tuple(reading.names.folders.items()))


def text_of(recipe: Recipe) -> str:
    """A recipe file that reads as an equal recipe: its expression, and what it says of the result."""
    form = recipe.form
    lines: dict[str, Any] = {"expression": str(recipe)}
    names = {short: name for name, short in _DTYPES.items()}
    lines |= {"dtype": names.get(form.dtype or ""), "out_dtype": names.get(form.out_dtype or ""), "as": form.as_kind}
    lines |= {"layers": form.layers, "heads": None if form.heads is None else str(form.heads)}
    if form.tokenizer is not None and form.tokenizer.prefers_base:
        lines["base_model"] = recipe.references()[0].address
    if form.tokenizer is not None:
        lines |= lines_of(form.tokenizer)
    # JSON is YAML, and quotes whatever needs it
    told = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in lines.items() if value is not None)
    return "".join(told)


_Sources = list[tuple[Source, tuple[int, int]]]
"""Inputs with the layers that are taken of each."""


@dataclass(frozen=True)
class _Slice:
    """One slice: what all of it shares, and its sources."""

    group: Group
    sources: _Sources

    def __iter__(self) -> Iterator[tuple[Source, tuple[int, int]]]:
        return iter(self.sources)


class _Reading:
    """Reads one document. names: the models in it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.names = Names()
        self._layers: int | None = None

    def root(self) -> Node:
        """The node of the whole merge."""
        method = self._method()
        given = [key for key in _INPUTS if self._document.get(key)]
        if "layers" in self._document:
            raise RecipeFileError("layers", "goes with an expression alone; slices name the layers of each model")
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise RecipeFileError(FILE, f"has one of {', '.join(_INPUTS)}, which are merged; found {found}")
        base = self._document.get("base_model")
        group = Group(
            method=method,
            sources=(),
            base=None if base is None else self.names.model(base, "base_model"),
            where=given[0],
            scopes=self._scopes(self._document, FILE),
            seed=self._seed(),
        )
        inputs = self._document[given[0]]
        read = {"models": self._models, "slices": self._slices, "modules": self._modules}[given[0]]
        return read(group, inputs)

    def expression(self) -> Node:
        """The node of an expression; what else the file says is of the result. base_model may name its base."""
        others = [key for key in self._document if key not in (*_FORM, "expression", "base_model", "layers")]
        if others:
            raise RecipeFileError(others[0], "an expression says it all but the form of the result; leave out either")
        recipe = parse(word_of(self._document["expression"], "expression"))
        if "layers" in self._document:
            self._layers = layers_of([0, self._document["layers"]], "layers")[1]
        if "base_model" in self._document:
            base = self.names.alone(self._document["base_model"], "base_model")
            if base != recipe.references()[0]:
                raise RecipeFileError("base_model", f"is {base}; the expression begins with {recipe.references()[0]}")
        return recipe.root

    def _method(self) -> str:
        if "merge_method" not in self._document:
            raise RecipeFileError(FILE, "has no merge_method; name one, such as merge_method: ties, or an expression")
        name = word_of(self._document["merge_method"], "merge_method")
        try:
            return find_method(name, methods()).name
        except UnknownMethod as error:
            raise RecipeFileError("merge_method", str(error)) from error

    def _seed(self) -> int | None:
        seed = self._document.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise RecipeFileError("seed", f"is {str(seed)[:60]}; expected a whole number from 0 to 2^63 - 1")
        return seed

    # ---- inputs ------------------------------------------------------------------------------------------------------

    def _models(self, group: Group, models: Any) -> Node:
        """The merge of whole models. A base that is not among them is, for methods that merge it as any other."""
        sources = []
        for number, one in enumerate(list_of(models, group.where)):
            where = f"{group.where}[{number}]"
            check_keys(one, ("model", "parameters"), where)
            sources.append(self._source(one, where, group.scopes))
        if group.base is not None and all(one.model != group.base for one in sources):
            sources.append(Source(group.base, "base_model", group.scopes))
        return self._built(group, sources)

    def _slices(self, group: Group, slices: Any) -> Node:
        """The merges of slices on top of one another; one slice from the first layer on is a merge of whole models."""
        found = [self._slice(group, one, number) for number, one in enumerate(list_of(slices, group.where))]
        if not found:
            raise RecipeFileError(group.where, "names no slice")
        ranges = {layers for _, layers in found[0]}
        if len(found) == 1 and len(ranges) == 1 and min(ranges)[0] == 0:
            self._layers = min(ranges)[1]
            return self._built(found[0].group, [one for one, _ in found[0]])
        return Stack(tuple(self._built_slice(one) for one in found))

    def _slice(self, group: Group, one: Any, number: int) -> _Slice:
        where = f"{group.where}[{number}]"
        check_keys(one, ("sources", "base_model", "parameters", "residual_weight"), where)
        if one.get("residual_weight") is not None:
            self.names.notes.append(f"{where}.residual_weight has no effect: mergekit does not use it")
        base = one.get("base_model")
        scopes = (*self._scopes(one, where), *group.scopes)
        named = group.base if base is None else self.names.model(base, f"{where}.base_model")
        whole = replace(group, base=named, where=where, scopes=scopes)
        sources = []
        for place, source in enumerate(list_of(one.get("sources"), f"{where}.sources")):
            at = f"{where}.sources[{place}]"
            check_keys(source, ("model", "layer_range", "parameters"), at)
            sources.append(
                (self._source(source, at, scopes), layers_of(source.get("layer_range"), f"{at}.layer_range"))
            )
        if not sources:
            raise RecipeFileError(f"{where}.sources", "names no model")
        counts = {end - first for _, (first, end) in sources}
        if len(counts) > 1:
            raise RecipeFileError(
                where, f"its sources have {' and '.join(map(str, sorted(counts)))} layers; one number"
            )
        return _Slice(whole, self._with_base(whole, sources))

    def _with_base(self, group: Group, sources: _Sources) -> _Sources:
        """The sources, with a base that is not among them where all have the same layers, which are then its too."""
        base = group.base
        if base is None or takes_base(group.method) == "input" or any(one.model == base for one, _ in sources):
            return sources
        ranges = {layers for _, layers in sources}
        if len(ranges) > 1:
            raise RecipeFileError(
                f"{group.where}.sources",
                f"lacks the base {base.ref}, and its sources have different layers; add it with its layer_range",
            )
        return [*sources, (Source(base, f"{group.where}.base_model", group.scopes), min(ranges))]

    def _built_slice(self, one: _Slice) -> Node:
        """The merge of a slice, each model with its layers."""
        base = one.group.base
        placed = {source.model: source.model.with_layers(layers) for source, layers in one}
        sources = [replace(source, model=placed[source.model]) for source, _ in one]
        self._check_twice([source for source, _ in one])
        group = replace(one.group, base=None if base is None else placed.get(base))
        return self._built(group, sources)

    def _modules(self, group: Group, modules: Any) -> Node:
        """The merges of a model's modules: of one as if it stood at the top, of several each on its own tensors."""
        if not isinstance(modules, Mapping):
            raise RecipeFileError(group.where, f"is {shown(modules)}; expected modules by name")
        found = {name: self._module(group, name, one) for name, one in modules.items()}
        if len(found) == 1:
            [(whole, key, inputs)] = found.values()
            return self._models(whole, inputs) if key == "models" else self._slices(whole, inputs)
        nodes = {}
        for name, (whole, key, inputs) in found.items():
            if key == "slices":
                raise RecipeFileError(whole.where, "slices are taken of models that have one module; write models")
            nodes[name] = self._models(whole, inputs)
        base = group.base.ref if group.base is not None else base_of(next(iter(nodes.values())))
        return by_module(base, nodes, group.where)

    def _module(self, group: Group, name: str, one: Any) -> tuple[Group, str, Any]:
        where = f"{group.where}.{name}"
        check_keys(one, ("models", "slices", "parameters"), where)
        given = [key for key in ("models", "slices") if one.get(key)]
        if len(given) != 1:
            raise RecipeFileError(where, "has one of models and slices")
        scopes = (*self._scopes(one, where), *group.scopes)
        return replace(group, where=f"{where}.{given[0]}", scopes=scopes), given[0], one[given[0]]

    def _source(self, one: Mapping[str, Any], where: str, scopes: Sequence[Scope]) -> Source:
        if "model" not in one:
            raise RecipeFileError(where, "names no model")
        return Source(self.names.model(one["model"], f"{where}.model"), where, (*self._scopes(one, where), *scopes))

    def _built(self, group: Group, sources: Sequence[Source]) -> Node:
        self._check_twice(sources)
        whole = replace(group, sources=tuple(sources))
        self.names.notes += passed_over(whole)
        return built(whole)

    def _check_twice(self, sources: Sequence[Source]) -> None:
        """Raises RecipeFileError where one model is merged with itself."""
        seen: dict[Model, str] = {}
        for one in sources:
            if one.model in seen:
                raise RecipeFileError(one.where, f"merges the same model as {seen[one.model]}; leave out one of them")
            seen[one.model] = one.where

    def _scopes(self, one: Mapping[str, Any], where: str) -> tuple[Scope, ...]:
        """The parameters that stand in one place of the file."""
        parameters = one.get("parameters")
        if parameters is None:
            return ()
        at = "parameters" if where == FILE else f"{where}.parameters"
        if not isinstance(parameters, Mapping):
            raise RecipeFileError(at, f"is {shown(parameters)}; expected parameters by name")
        misplaced = [key for key in parameters if key in _TOP]
        if misplaced:
            raise RecipeFileError(f"{at}.{misplaced[0]}", "is no parameter but a key of the file; move it to the top")
        return ((at, parameters),)

    # ---- the form of the result --------------------------------------------------------------------------------------

    def form(self) -> Form:
        """What the file says of the result besides its sum."""
        told = {key: self._word(key) for key in ("dtype", "out_dtype", "as")}
        self._word("name")
        dtypes = {key: _dtype(value, key) for key, value in told.items() if key != "as"}
        return Form(
            dtypes["dtype"],
            dtypes["out_dtype"],
            told["as"],
            TokenizerSettings(self._document, self.names).policy(),
            self._layers,
            self._heads(),
        )

    def _heads(self) -> Heads | None:
        """The policy for heads. Raises RecipeFileError."""
        word = self._word("heads")
        if word is None or word in ("drop", "multi"):
            return None if word is None else Heads(word)
        choice, _, name = word.partition(":")
        if choice != "keep" or not name:
            raise RecipeFileError("heads", f"is {word!r}; expected keep:NAME with a model of this file, drop or multi")
        return Heads(choice, self.names.alone(name, "heads"))

    def _word(self, key: str) -> str | None:
        value = self._document.get(key)
        return None if value is None else word_of(value, key)


_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


def _dtype(value: str | None, where: str) -> str | None:
    name = None if value is None else value.removeprefix("torch.")
    if name is not None and name not in _DTYPES:
        raise RecipeFileError(where, f"is {value!r}; expected one of {', '.join(_DTYPES)}")
    return None if name is None else _DTYPES[name]
