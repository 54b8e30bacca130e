"""Recipe files: mergekit's YAML as it is, and what we add to it, read into the recipes that expressions give.

mergekit's keys: merge_method, models or slices or modules, base_model, parameters, dtype, out_dtype, tokenizer_source,
tokenizer, chat_template, name. Ours: expression in place of merge_method, layers beside it, `as`, seed; and any patch
may stand where a model does.
Source: mergekit 0.1.5 `config.py`, `plan.py`, `common.ModelReference`; docs/recipes.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.merging.errors import ExpressionError, InvalidParameter, InvalidRecipe, UnknownMethod
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.building import Group, Model, Source, built, nearest, passed_over, takes_base
from adapterhub.merging.recipes.documents import FILE, read_document, shown
from adapterhub.merging.recipes.expression import check_terms, parse
from adapterhub.merging.recipes.mergekit import KNOWN
from adapterhub.merging.recipes.modules import base_of, by_module
from adapterhub.merging.recipes.nodes import Form, Node, Recipe, Ref, Stack
from adapterhub.merging.recipes.precedence import Scope
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from adapterhub.merging.registry import find_method

_INPUTS = ("models", "slices", "modules")
_FORM = ("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "as", "name")
_TOP = ("merge_method", "expression", "layers", "base_model", "parameters", "seed", *_INPUTS, *_FORM)
_EXPERTS = ("experts", "shared_experts", "gate_mode", "experts_per_token")

_LOCAL = re.compile(r"[./~\\]|.*\\|[A-Za-z]:[/\\]")
"""How the name of a folder begins that is no repository: ./x, ../x, /x, ~/x, C:/x, or with a backslash anywhere."""

_HINTS = {
    "revision": "a revision is part of the name: model: NAME@REVISION",
    "lora": "a LoRA is part of the name: model: NAME+LORA",
    "source_model": "the key is model",
}
MAX_LAYERS = 10_000
_MOST_NAME = 500
"""Longest name of a model."""


def read(text: str) -> Recipe:
    """The recipe of a file's text. Names are not looked up.

    Raises InvalidRecipe, which says where in the file and what was expected; UnknownMethod, which names a near one;
    ExpressionError under `expression`; RecipeTooLarge past the limits.
    """
    document = read_document(text)
    experts = [key for key in _EXPERTS if key in document]
    if experts:
        raise InvalidRecipe(
            experts[0], "belongs to mergekit-moe, which makes a mixture of experts; a recipe file merges models"
        )
    _check_keys(document, _TOP, FILE)
    reading = _Reading(document)
    root = reading.expression() if "expression" in document else reading.root()
    check_terms(root)
    return Recipe(root, text, reading.form(), tuple(reading.notes), tuple(reading.folders.items()))


def text_of(recipe: Recipe) -> str:
    """A recipe file that reads as an equal recipe: its expression, and what it says of the result."""
    form = recipe.form
    lines: dict[str, Any] = {"expression": str(recipe)}
    names = {short: name for name, short in _DTYPES.items()}
    lines |= {"dtype": names.get(form.dtype or ""), "out_dtype": names.get(form.out_dtype or ""), "as": form.as_kind}
    lines["layers"] = form.layers
    if form.tokenizer is not None and form.tokenizer.prefers_base:
        lines["base_model"] = recipe.references()[0].address
    if form.tokenizer is not None:
        lines |= _tokenizer_lines(form.tokenizer)
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
    """Reads one document. folders: local folders by the names that stand for them."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._refs: dict[str, Ref] = {}
        self.folders: dict[Ref, str] = {}
        self.notes: list[str] = []
        self._layers: int | None = None

    def root(self) -> Node:
        """The node of the whole merge."""
        method = self._method()
        given = [key for key in _INPUTS if self._document.get(key)]
        if "layers" in self._document:
            raise InvalidRecipe("layers", "goes with an expression alone; slices name the layers of each model")
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InvalidRecipe(FILE, f"has one of {', '.join(_INPUTS)}, which are merged; found {found}")
        base = self._document.get("base_model")
        group = Group(
            method=method,
            sources=(),
            base=None if base is None else self.model(base, "base_model"),
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
            raise InvalidRecipe(others[0], "an expression says it all but the form of the result; leave out either")
        recipe = parse(_text(self._document["expression"], "expression"))
        if "layers" in self._document:
            self._layers = _layers([0, self._document["layers"]], "layers")[1]
        if "base_model" in self._document:
            base = self._alone(self._document["base_model"], "base_model")
            if base != recipe.references()[0]:
                raise InvalidRecipe("base_model", f"is {base}; the expression begins with {recipe.references()[0]}")
        return recipe.root

    def _method(self) -> str:
        if "merge_method" not in self._document:
            raise InvalidRecipe(FILE, "has no merge_method; name one, such as merge_method: ties, or an expression")
        name = _text(self._document["merge_method"], "merge_method")
        try:
            return find_method(name, methods()).name
        except UnknownMethod as error:
            raise InvalidRecipe("merge_method", str(error)) from error

    def _seed(self) -> int | None:
        seed = self._document.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise InvalidRecipe("seed", f"is {str(seed)[:60]}; expected a whole number from 0 to 2^63 - 1")
        return seed

    # ---- inputs ------------------------------------------------------------------------------------------------------

    def _models(self, group: Group, models: Any) -> Node:
        """The merge of whole models. A base that is not among them is, for methods that merge it as any other."""
        sources = []
        for number, one in enumerate(_list(models, group.where)):
            where = f"{group.where}[{number}]"
            _check_keys(one, ("model", "parameters"), where)
            sources.append(self._source(one, where, group.scopes))
        if group.base is not None and all(one.model != group.base for one in sources):
            sources.append(Source(group.base, "base_model", group.scopes))
        return self._built(group, sources)

    def _slices(self, group: Group, slices: Any) -> Node:
        """The merges of slices on top of one another; one slice from the first layer on is a merge of whole models."""
        found = [self._slice(group, one, number) for number, one in enumerate(_list(slices, group.where))]
        if not found:
            raise InvalidRecipe(group.where, "names no slice")
        ranges = {layers for _, layers in found[0]}
        if len(found) == 1 and len(ranges) == 1 and min(ranges)[0] == 0:
            self._layers = min(ranges)[1]
            return self._built(found[0].group, [one for one, _ in found[0]])
        return Stack(tuple(self._built_slice(one) for one in found))

    def _slice(self, group: Group, one: Any, number: int) -> _Slice:
        where = f"{group.where}[{number}]"
        _check_keys(one, ("sources", "base_model", "parameters", "residual_weight"), where)
        if one.get("residual_weight") is not None:
            self.notes.append(f"{where}.residual_weight has no effect: mergekit does not use it")
        base = one.get("base_model")
        scopes = (*self._scopes(one, where), *group.scopes)
        named = group.base if base is None else self.model(base, f"{where}.base_model")
        whole = replace(group, base=named, where=where, scopes=scopes)
        sources = []
        for place, source in enumerate(_list(one.get("sources"), f"{where}.sources")):
            at = f"{where}.sources[{place}]"
            _check_keys(source, ("model", "layer_range", "parameters"), at)
            sources.append((self._source(source, at, scopes), _layers(source.get("layer_range"), f"{at}.layer_range")))
        if not sources:
            raise InvalidRecipe(f"{where}.sources", "names no model")
        counts = {end - first for _, (first, end) in sources}
        if len(counts) > 1:
            raise InvalidRecipe(where, f"its sources have {' and '.join(map(str, sorted(counts)))} layers; one number")
        return _Slice(whole, self._with_base(whole, sources))

    def _with_base(self, group: Group, sources: _Sources) -> _Sources:
        """The sources, with a base that is not among them where all have the same layers, which are then its too."""
        base = group.base
        if base is None or takes_base(group.method) == "input" or any(one.model == base for one, _ in sources):
            return sources
        ranges = {layers for _, layers in sources}
        if len(ranges) > 1:
            raise InvalidRecipe(
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
            raise InvalidRecipe(group.where, f"is {shown(modules)}; expected modules by name")
        found = {name: self._module(group, name, one) for name, one in modules.items()}
        if len(found) == 1:
            [(whole, key, inputs)] = found.values()
            return self._models(whole, inputs) if key == "models" else self._slices(whole, inputs)
        nodes = {}
        for name, (whole, key, inputs) in found.items():
            if key == "slices":
                raise InvalidRecipe(whole.where, "slices are taken of models that have one module; write models")
            nodes[name] = self._models(whole, inputs)
        base = group.base.ref if group.base is not None else base_of(next(iter(nodes.values())))
        return by_module(base, nodes, group.where)

    def _module(self, group: Group, name: str, one: Any) -> tuple[Group, str, Any]:
        where = f"{group.where}.{name}"
        _check_keys(one, ("models", "slices", "parameters"), where)
        given = [key for key in ("models", "slices") if one.get(key)]
        if len(given) != 1:
            raise InvalidRecipe(where, "has one of models and slices")
        scopes = (*self._scopes(one, where), *group.scopes)
        return replace(group, where=f"{where}.{given[0]}", scopes=scopes), given[0], one[given[0]]

    def _source(self, one: Mapping[str, Any], where: str, scopes: Sequence[Scope]) -> Source:
        if "model" not in one:
            raise InvalidRecipe(where, "names no model")
        return Source(self.model(one["model"], f"{where}.model"), where, (*self._scopes(one, where), *scopes))

    def _built(self, group: Group, sources: Sequence[Source]) -> Node:
        self._check_twice(sources)
        whole = replace(group, sources=tuple(sources))
        self.notes += passed_over(whole)
        return built(whole)

    def _check_twice(self, sources: Sequence[Source]) -> None:
        """Raises InvalidRecipe where one model is merged with itself."""
        seen: dict[Model, str] = {}
        for one in sources:
            if one.model in seen:
                raise InvalidRecipe(one.where, f"merges the same model as {seen[one.model]}; leave out one of them")
            seen[one.model] = one.where

    def _scopes(self, one: Mapping[str, Any], where: str) -> tuple[Scope, ...]:
        """The parameters that stand in one place of the file."""
        parameters = one.get("parameters")
        if parameters is None:
            return ()
        at = "parameters" if where == FILE else f"{where}.parameters"
        if not isinstance(parameters, Mapping):
            raise InvalidRecipe(at, f"is {shown(parameters)}; expected parameters by name")
        misplaced = [key for key in parameters if key in _TOP]
        if misplaced:
            raise InvalidRecipe(f"{at}.{misplaced[0]}", "is no parameter but a key of the file; move it to the top")
        return ((at, parameters),)

    def model(self, value: Any, where: str) -> Model:
        """The model that a name, or mergekit's mapping of one, stands for."""
        if isinstance(value, Mapping):
            _check_keys(value, ("model", "lora", "override_architecture"), where)
            if value.get("override_architecture") is not None:
                self.notes.append(f"{where}.override_architecture has no effect: tensors are matched by their names")
            if "model" not in value:
                raise InvalidRecipe(where, "names no model")
            lora = value.get("lora")
            named = self._ref(_path(value["model"], f"{where}.model"), where)
            return Model(named, None if lora is None else self._ref(_path(lora, f"{where}.lora"), where))
        parts = _text(value, where).split("+")
        if len(parts) > 2:
            raise InvalidRecipe(where, f"{shown(value)}: a model and one LoRA are written NAME+LORA")
        return Model(*(self._ref(part.strip(), where) for part in parts))

    def _ref(self, text: str, where: str) -> Ref:
        if text not in self._refs:
            self._refs[text] = self._new_ref(text, where)
        return self._refs[text]

    def _new_ref(self, text: str, where: str) -> Ref:
        if len(text) > _MOST_NAME:
            raise InvalidRecipe(where, f"a name of {len(text)} characters; at most {_MOST_NAME} are read")
        if text.count("@") > 1:
            raise InvalidRecipe(where, f"{text!r}: one revision is written NAME@REVISION")
        if not _LOCAL.match(text):
            try:
                return Ref.of(text)
            except ExpressionError as error:
                raise InvalidRecipe(where, f"{error.problem}, or a folder such as ./model") from error
        ref = _local_ref(text, {*self._refs.values()})
        self.folders[ref] = text
        return ref

    # ---- the form of the result --------------------------------------------------------------------------------------

    def form(self) -> Form:
        """What the file says of the result besides its sum."""
        told = {key: self._word(key) for key in ("dtype", "out_dtype", "as")}
        self._word("name")
        dtypes = {key: _dtype(value, key) for key, value in told.items() if key != "as"}
        return Form(dtypes["dtype"], dtypes["out_dtype"], told["as"], self._tokenizer(), self._layers)

    def _word(self, key: str) -> str | None:
        value = self._document.get(key)
        return None if value is None else _text(value, key)

    def _tokenizer(self) -> TokenizerPolicy | None:
        source, told = self._document.get("tokenizer_source"), self._document.get("tokenizer")
        template = self._word("chat_template")
        if source is not None and told is not None:
            raise InvalidRecipe("tokenizer", "tokenizer_source is given too; leave out one of them")
        if source is None and told is None and template is None:
            return None
        if told is None:
            found = None if source is None else self._vocabulary(source, "tokenizer_source")
            return self._policy("tokenizer_source", source=found, chat_template=template)
        if not isinstance(told, Mapping):
            raise InvalidRecipe("tokenizer", f"is {shown(told)}; expected source, tokens, pad_to_multiple_of")
        _check_keys(told, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
        tokens = told.get("tokens") or {}
        if not isinstance(tokens, Mapping):
            raise InvalidRecipe("tokenizer.tokens", f"is {shown(tokens)}; expected settings by token")
        rows = tuple((str(token), self._row(one, f"tokenizer.tokens.{token}")) for token, one in tokens.items())
        return self._policy(
            "tokenizer",
            source=self._vocabulary(told.get("source", "union"), "tokenizer.source"),
            tokens=rows,
            pad_to_multiple_of=told.get("pad_to_multiple_of"),
            chat_template=template,
        )

    def _policy(self, where: str, **told: Any) -> TokenizerPolicy:
        try:
            return TokenizerPolicy(**told, prefers_base=self._document.get("base_model") is not None)
        except InvalidParameter as error:
            raise InvalidRecipe(where, str(error)) from error

    def _vocabulary(self, value: Any, where: str) -> Any:
        """ "union", "base" or a model: the base is called so where the file names it outright."""
        if value in ("union", "base"):
            return value
        model, base = self._alone(value, where), self._document.get("base_model")
        return "base" if base is not None and Model(model) == self.model(base, "base_model") else model

    def _alone(self, value: Any, where: str) -> Ref:
        model = self.model(value, where)
        if model.lora is not None:
            raise InvalidRecipe(where, f"{shown(value)}: a tokenizer is taken from a model, without a LoRA")
        return model.ref

    def _row(self, one: Any, where: str) -> TokenRow:
        if not isinstance(one, Mapping):
            raise InvalidRecipe(where, f"is {shown(one)}; expected source, force")
        _check_keys(one, ("source", "force"), where)
        source, is_forced = one.get("source"), one.get("force", False)
        if not isinstance(is_forced, bool):
            raise InvalidRecipe(f"{where}.force", f"is {shown(is_forced)}; expected true or false")
        told: dict[str, Any] = {}
        if isinstance(source, Mapping) and "kind" in source:
            _check_keys(source, ("kind", "model", "token", "token_id"), f"{where}.source")
            if source["kind"] not in ("zero", "model_token"):
                raise InvalidRecipe(f"{where}.source.kind", f"{shown(source['kind'])} is neither zero nor model_token")
            told = {key: source[key] for key in ("token", "token_id") if key in source}
            told["is_zero"] = source["kind"] == "zero"
            source = source.get("model")
        if source is not None:
            told["model"] = self._alone(source, f"{where}.source")
        try:
            return TokenRow(**told, is_forced=is_forced)
        except InvalidParameter as error:
            raise InvalidRecipe(where, str(error)) from error


# ---- parts of a file -------------------------------------------------------------------------------------------------


def _check_keys(value: Any, known: Sequence[str], where: str) -> None:
    """Raises InvalidRecipe for what is no mapping, and for a key that is not known there."""
    if not isinstance(value, Mapping):
        raise InvalidRecipe(where, f"is {shown(value)}; expected {', '.join(known)}")
    for key in value:
        if key in known:
            continue
        at = key if where == FILE else f"{where}.{key}"
        if key in KNOWN and "parameters" in known:
            raise InvalidRecipe(at, "is a parameter; write it below parameters")
        raise InvalidRecipe(at, f"no such key; {_HINTS.get(key) or nearest(key, known)}")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRecipe(where, f"is {shown(value)}; expected a list")
    return value


def _layers(value: Any, where: str) -> tuple[int, int]:
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value)
    if not is_pair or not 0 <= value[0] < value[1] <= MAX_LAYERS:
        raise InvalidRecipe(where, f"is {shown(value)}; expected [FIRST, END], one past the last layer taken")
    return value[0], value[1]


def _path(value: Any, where: str) -> str:
    """The text of a model's path: itself, or mergekit's mapping with path and revision."""
    if not isinstance(value, Mapping):
        return _text(value, where)
    _check_keys(value, ("path", "revision"), where)
    path, revision = (value.get(key) for key in ("path", "revision"))
    return _text(path, f"{where}.path") + ("" if revision is None else f"@{_text(revision, f'{where}.revision')}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidRecipe(where, f"is {shown(value)}; expected a name")
    return value.strip()


_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


def _dtype(value: str | None, where: str) -> str | None:
    name = None if value is None else value.removeprefix("torch.")
    if name is not None and name not in _DTYPES:
        raise InvalidRecipe(where, f"is {value!r}; expected one of {', '.join(_DTYPES)}")
    return None if name is None else _DTYPES[name]


def _local_ref(text: str, taken: Iterable[Ref]) -> Ref:
    """A name for a folder, after its last part."""
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", last).strip(".-") or "model"
    names = {ref.name for ref in taken}
    number = 2
    found = name
    while found in names:
        found, number = f"{name}-{number}", number + 1
    return Ref(found)


def _tokenizer_lines(policy: TokenizerPolicy) -> dict[str, Any]:
    lines: dict[str, Any] = {"chat_template": policy.chat_template}
    if policy.source is None:
        return lines
    source = policy.source if isinstance(policy.source, str) else policy.source.address
    tokens = {token: _row_lines(row) for token, row in policy.tokens}
    told = {"source": source, "tokens": tokens or None, "pad_to_multiple_of": policy.pad_to_multiple_of}
    return lines | {"tokenizer": {key: value for key, value in told.items() if value is not None}}


def _row_lines(row: TokenRow) -> dict[str, Any]:
    source: Any = None if row.model is None else row.model.address
    if row.is_zero:
        source = {"kind": "zero"}
    elif row.token is not None or row.token_id is not None:
        told = {"kind": "model_token", "model": source, "token": row.token, "token_id": row.token_id}
        source = {key: value for key, value in told.items() if value is not None}
    return {"source": source, "force": row.is_forced}
