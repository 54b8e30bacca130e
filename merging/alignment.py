"""Models of different vocabularies in one: tables with a row a token re-indexed before they are merged.

`align` gives every model as a checkpoint whose embeddings have the rows of the result's vocabulary, worked out when
they are read, and the files, numbers and sentences that go with it. Whatever merges them sees models of one shape.
Never imports torch.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from adapterhub.merging.casting import cast_model
from adapterhub.merging.chat_templates import template_files, template_for
from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, NotFoldable, ShapeMismatch
from adapterhub.merging.folders import join, read_json, strict_json
from adapterhub.merging.ops.vocabulary import Fills, Table, reindexed
from adapterhub.merging.patch import Patch, SiteTerm
from adapterhub.merging.quantised import dequantised
from adapterhub.merging.recipes.canonical import MODEL, Input, aliases, known, named_by
from adapterhub.merging.recipes.nodes import Recipe, Ref
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy
from adapterhub.merging.sites import has_row_for_each_token, is_input_embedding, tie_of
from adapterhub.merging.tokenizers import (
    CONFIG,
    Tokenizer,
    is_tokenizer_file,
    json_bytes,
    read_tokenizer,
    written,
)
from adapterhub.merging.vocabularies import Filling, Speaker, Vocabulary, report, vocabulary_of

GENERATION = "generation_config.json"

_FLOATS = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class Alignment:
    """Models made to fit one another, and what the result gets besides weights.

    models: each with its tables re-indexed. base: the one whose configuration is the result's. is_aligned: whether a
    setting names a vocabulary at all. dtypes: what the base's tables are stored in, where the aligned ones are computed
    in another. changed: names of the tables that are re-indexed in any model. files: to write beside the weights
    instead of the base's; has_own_tokenizer: whether the base's tokenizer files are all left out for them. report:
    everything that is done, JSON values.
    """

    models: Mapping[Ref, Checkpoint]
    base: Ref
    dtypes: Mapping[str, str] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    files: Mapping[str, bytes] = field(default_factory=dict)
    has_own_tokenizer: bool = False
    is_aligned: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)

    def is_copied(self, name: str) -> bool:
        """Whether a file beside the base's weights goes into the result as it is."""
        file = name.rpartition("/")[2]
        return file not in self.files and not (self.has_own_tokenizer and is_tokenizer_file(file))

    def of(self, ref: Ref) -> tuple[Checkpoint, Checkpoint] | None:
        """A model and the base where the vocabularies were aligned; None where they were not, and for a patch."""
        return (self.models[ref], self.models[self.base]) if self.is_aligned and ref in self.models else None

    def renamed(self, names: Mapping[Ref, Ref]) -> Alignment:
        """The same with every name of a model. names: the one that stands for each."""
        models = {ref: self.models[first] for ref, first in names.items() if first in self.models}
        return replace(self, models=models)


def aligned_inputs(recipe: Recipe, base_ref: Ref, base: Checkpoint, inputs: Mapping[Ref, Input]) -> Alignment:
    """A recipe's models in one vocabulary, under all their names; the base alone where no setting asks for it.

    base: opened already, and rounded to the dtype that the recipe says, as the others are here; of a stack the lowest
    slice's. Models of a stack have all their layers here. Raises UnknownName for a model of the setting that is not
    given, and what `align` raises.
    """
    policy, dtype = recipe.form.tokenizer, recipe.form.dtype
    if policy is None:
        return Alignment({base_ref: base}, base_ref)
    references = [base_ref, *known(recipe, inputs)]
    same = aliases([*references, *named_by(recipe, inputs)], inputs, are_whole=True)
    opened = {base_ref: base}
    for ref in same.values():
        if ref not in opened and inputs[ref].kind == MODEL:
            stored = Checkpoint.open(inputs[ref].folder, inputs[ref].path, name=inputs[ref].name)
            opened[ref] = cast_model(dequantised(stored), dtype)
    merged = {same[ref] for ref in references}
    models = {ref: one for ref, one in opened.items() if ref in merged}
    donors = {ref: one for ref, one in opened.items() if ref not in merged}
    return align(policy.renamed(same), base_ref, models, donors).renamed(same)


def check_patches(
    read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input], aligned: Alignment, *, attaches: bool
) -> None:
    """Raises NotFoldable for a patch of rows that move, and for a model in memory whose vocabulary would change."""
    if aligned.changed and attaches:
        raise NotFoldable(
            f"{min(aligned.changed)}: gets the rows of another vocabulary, and a base in memory keeps its own; merge "
            "into a repository and serve that"
        )
    for ref, patch in read.items():
        touched = {site for term in patch.terms for site in _sites(term)} if inputs[ref].kind != MODEL else set()
        if touched & aligned.changed:
            raise NotFoldable(
                f"{min(touched & aligned.changed)}: {inputs[ref].name} changes it in the rows of its own vocabulary, "
                "and the tokenizer setting gives it others; merge it into its base first, and name the result here"
            )


def _sites(term: SiteTerm) -> tuple[Any, ...]:
    return term.site, term.options.get("tied_source"), term.options.get("tied_output")


def align(
    policy: TokenizerPolicy, base: Ref, models: Mapping[Ref, Checkpoint], donors: Mapping[Ref, Checkpoint]
) -> Alignment:
    """The models of a recipe as its tokenizer setting wants them. models: the base first; donors: those the setting
    alone names.

    Raises InvalidParameter for a setting that does not fit the models, InvalidPatch for a tokenizer that makes no
    sense, NotFoldable for tables that cannot be re-indexed.
    """
    if policy.source is None or _has_nothing_to_align(policy, base, models):
        found = Alignment(models, base, report={"source": None})
    else:
        found = _reindexed(policy, base, _untied(models), donors)
    return found if policy.chat_template is None else _with_template(policy.chat_template, found, models[base])


def _has_nothing_to_align(policy: TokenizerPolicy, base: Ref, models: Mapping[Ref, Checkpoint]) -> bool:
    """Whether the base's vocabulary is asked for, the base has no tokenizer, and all models have as many rows."""
    own = models[base]
    if policy.source not in ("base", base) or policy.tokens or policy.pad_to_multiple_of is not None:
        return False
    if own.folder is not None and read_tokenizer(own.folder, own.prefix, own.name) is not None:
        return False
    return len({rows_of(one) for one in models.values()}) == 1


def _reindexed(
    policy: TokenizerPolicy, base: Ref, models: Mapping[Ref, Checkpoint], donors: Mapping[Ref, Checkpoint]
) -> Alignment:
    every = {**models, **donors}
    speakers, notes = _speakers(base, every, set(models))
    vocabulary = vocabulary_of(policy, base, speakers)
    indices = _Indices(vocabulary, tuple(every))
    tables = {ref: _tables(one, speakers[ref].rows) for ref, one in every.items()}
    aligned = {ref: indices.applied(ref, one, every, tables) for ref, one in models.items()}
    is_own = vocabulary.is_new or vocabulary.source != base
    files = written(vocabulary.tokenizer, vocabulary.more, is_stripped=bool(vocabulary.stripped)) if is_own else {}
    numbers = _Numbers(vocabulary, base, every, speakers[base].tokenizer)
    if numbers.are_others:
        files |= numbers.generation_file(every)
    config = numbers.moved(_sized(aligned[base].config, vocabulary.rows), every[vocabulary.source].config)
    aligned[base] = replace(aligned[base], config=config)
    moving = {ref for ref, one in speakers.items() if one.is_merged and vocabulary.moves(ref, one.rows)}
    told = report(vocabulary, speakers, str(policy.source)) | {"notes": notes}
    return Alignment(
        models=aligned,
        base=base,
        is_aligned=True,
        dtypes={name: handle.dtype for name, handle in tables[base].items()},
        changed=frozenset(name for ref in moving for name in tables[ref]),
        files=files,
        has_own_tokenizer=is_own,
        report=told | {"tables": sorted(tables[base]), "files": sorted(files)},
    )


# ---- models ----------------------------------------------------------------------------------------------------------


def _untied(models: Mapping[Ref, Checkpoint]) -> Mapping[Ref, Checkpoint]:
    """The models as they are, where input and output embedding are one tensor in all or in none; else two in each."""
    ties = {ref: tie_of(one) for ref, one in models.items()}
    if all(tie is None for tie in ties.values()) or None not in ties.values():
        return models
    found = {}
    for ref, one in models.items():
        tie = ties[ref]
        if tie is not None:
            tensors = {**one.tensors, tie.output: replace(one.tensors[tie.stored], name=tie.output)}
            config = {**one.config, "tie_word_embeddings": False}
            one = replace(one, tensors=dict(sorted(tensors.items())), config=config)
        found[ref] = one
    return found


def _speakers(base: Ref, models: Mapping[Ref, Checkpoint], merged: set[Ref]) -> tuple[dict[Ref, Speaker], list[str]]:
    """Every model with its tokenizer; one without files has the base's, if it has as many rows."""
    found: dict[Ref, Speaker] = {}
    notes = []
    for ref in (base, *(one for one in models if one != base)):
        model, rows = models[ref], rows_of(models[ref])
        own = None if model.folder is None else read_tokenizer(model.folder, model.prefix, model.name)
        if own is None and (ref == base or rows != found[base].rows):
            raise InvalidParameter(
                f"{model.name}: has no tokenizer files (tokenizer.json), so its {rows} rows cannot be told apart; add "
                "those it was trained with"
            )
        if own is None:
            notes.append(
                f"{ref} has no tokenizer files; it has as many rows as {base}, whose tokens it is taken to have"
            )
        found[ref] = Speaker(own or found[base].tokenizer, rows, ref in merged)
    return found, notes


def rows_of(model: Checkpoint) -> int:
    """How many tokens a model has rows for. Raises InvalidParameter where it has no embedding of tokens."""
    counts = {size for name, one in model.tensors.items() if is_input_embedding(name) for size in one.shape[:1]}
    said = model.config.get("vocab_size")
    if len(counts) > 1 and isinstance(said, int):
        counts &= {said}
    if len(counts) != 1:
        raise InvalidParameter(
            f"{model.name}: has {len(counts) or 'no'} embeddings of tokens, and a tokenizer setting goes by one; leave "
            "it out"
        )
    return counts.pop()


def _tables(model: Checkpoint, rows: int) -> Mapping[str, TensorHandle]:
    """The parameters with a row a token. Raises NotFoldable for one that has tokens somewhere else."""
    if "final_logits_bias" in model.tensors:
        raise NotFoldable(f"{model.name}: final_logits_bias has a column a token, and only rows are re-indexed")
    return {
        name: handle
        for name, handle in model.tensors.items()
        if has_row_for_each_token(name) and handle.shape[:1] == (rows,)
    }


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Indices:
    """The vocabulary as arrays, made once for all tables. order: of the models whose tables are given."""

    vocabulary: Vocabulary
    order: tuple[Ref, ...]

    def applied(
        self,
        ref: Ref,
        model: Checkpoint,
        every: Mapping[Ref, Checkpoint],
        tables: Mapping[Ref, Mapping[str, TensorHandle]],
    ) -> Checkpoint:
        """The model with its tables in the result's vocabulary; as it is where that is its own."""
        if not tables[ref] or not self.vocabulary.moves(ref, next(iter(tables[ref].values())).shape[0]):
            return model
        changed = {name: self._handle(ref, name, every, tables) for name in tables[ref]}
        return replace(model, tensors={**model.tensors, **changed})

    def _handle(
        self,
        ref: Ref,
        name: str,
        every: Mapping[Ref, Checkpoint],
        tables: Mapping[Ref, Mapping[str, TensorHandle]],
    ) -> TensorHandle:
        own = tables[ref][name]
        fills = self._lacking(ref)
        used = {one for filling in fills.values() for one, _ in filling} | {ref}
        order = [one for one in self.order if one in used]
        given = [_matching(name, one, every[one], tables[one], own) for one in order]
        dtype = self._dtype(name, [one.dtype for one in given], fills)
        shape = (self.vocabulary.rows, *own.shape[1:])

        def compute() -> Any:
            read = [Table.of_bytes(one.read(), one.dtype, one.shape[0]) for one in given]
            rows = np.asarray(self.vocabulary.maps[ref], np.int64)
            return reindexed(order.index(ref), read, rows, _fills(fills, order), total=shape[0], dtype=dtype)

        return TensorHandle(name, dtype, shape, _Shared(compute).read, is_computed=True)

    def _lacking(self, ref: Ref) -> Mapping[int, Filling]:
        """The fills that a model needs."""
        rows = self.vocabulary.maps[ref]
        return {number: filling for number, filling in self.vocabulary.fills.items() if rows[number] < 0}

    def _dtype(self, name: str, given: Sequence[str], fills: Mapping[int, Filling]) -> str:
        """What a table is computed in: its own dtype where rows are only moved, else 32 or 64 bits."""
        is_padded = self.vocabulary.rows > self.vocabulary.size
        if len(set(given)) == 1 and not is_padded and all(len(one) <= 1 for one in fills.values()):
            return given[0]
        if not set(given) <= set(_FLOATS):
            kinds = ", ".join(sorted(set(given)))
            raise NotFoldable(f"{name}: rows of {kinds} would be averaged; that takes floats of 16 to 64 bits")
        return "F64" if "F64" in given else "F32"


def _fills(fills: Mapping[int, Filling], order: Sequence[Ref]) -> Fills:
    ids = sorted(fills)
    places = {ref: place for place, ref in enumerate(order)}
    rows = np.full((len(order), len(ids)), -1, np.int64)
    for place, number in enumerate(ids):
        for ref, row in fills[number]:
            rows[places[ref], place] = row
    return Fills(np.asarray(ids, np.int64), rows)


def _matching(
    name: str, ref: Ref, model: Checkpoint, tables: Mapping[str, TensorHandle], own: TensorHandle
) -> TensorHandle:
    """The same table of another model. Raises NotFoldable or ShapeMismatch where it has none, or one of other width."""
    found = tables.get(name)
    if found is None:
        tie = tie_of(model)
        found = None if tie is None or tie.output != name else tables.get(tie.stored)
    if found is None:
        raise NotFoldable(f"{name}: {ref} has no such table, and tokens that others lack take their rows from it")
    if found.shape[1:] != own.shape[1:]:
        raise ShapeMismatch(name, found.shape, model.name, own.shape)
    return found


class _Shared:
    """Bytes that are computed when they are read, and once for all who hold them at the same time."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._held: weakref.ref[Any] | None = None

    def read(self) -> memoryview:
        with self._lock:
            values = self._held() if self._held is not None else None
            if values is None:
                values = self._compute()
                self._held = weakref.ref(values)
        return memoryview(values.reshape(-1).view(np.uint8)).toreadonly() if values.size else memoryview(b"")


# ---- configuration and files -----------------------------------------------------------------------------------------


def _sized(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    found = dict(config)
    inner = found.get("text_config")
    if isinstance(inner, dict) and "vocab_size" in inner:
        found["text_config"] = {**inner, "vocab_size": rows}
    if "vocab_size" in found or not isinstance(inner, dict):
        found["vocab_size"] = rows
    return found


@dataclass(frozen=True)
class _Numbers:
    """Ids of special tokens in configurations: the source's own, else the base's by their tokens."""

    vocabulary: Vocabulary
    base: Ref
    every: Mapping[Ref, Checkpoint]
    tokenizer: Tokenizer

    @property
    def are_others(self) -> bool:
        """Whether any id may mean another token than in the base."""
        return self.vocabulary.source != self.base or bool(self.vocabulary.stripped)

    def moved(self, config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        """The base's configuration with ids of the result."""
        if not self.are_others:
            return dict(config)
        found: dict[str, Any] = {}
        for key, value in config.items():
            if isinstance(value, dict):
                inner = source.get(key)
                found[key] = self.moved(value, inner if isinstance(inner, dict) else {})
            elif not key.endswith("_token_id"):
                found[key] = value
            elif key in source and self.vocabulary.source != self.base:
                found[key] = source[key]
            else:
                found[key] = self._translated(value)
        return found

    def _translated(self, value: Any) -> Any:
        if isinstance(value, list):
            found = [self._translated(one) for one in value]
            return [one for one in found if one is not None]
        if type(value) is not int or value < 0:
            return value
        return self.vocabulary.ids.get(self._tokens.get(value, ""))

    @cached_property
    def _tokens(self) -> Mapping[int, str]:
        """The base's tokens by their ids."""
        return {number: token for token, number in self.tokenizer.ids.items()}

    def generation_file(self, every: Mapping[Ref, Checkpoint]) -> dict[str, bytes]:
        """The base's generation_config.json with ids of the result, {} where it has none."""
        config = _generation(every[self.base])
        return (
            {}
            if config is None
            else {GENERATION: json_bytes(self.moved(config, _generation(every[self.vocabulary.source]) or {}))}
        )


def _generation(model: Checkpoint) -> Mapping[str, Any] | None:
    name = join(model.prefix, GENERATION)
    if model.folder is None or name not in model.folder.names():
        return None
    return read_json(model.folder, name)


def _with_template(asked: str, found: Alignment, base: Checkpoint) -> Alignment:
    places = [(one.folder, one.prefix) for one in found.models.values() if one.folder is not None]
    text = template_for(asked, places)
    if text is None:
        return replace(found, report={**found.report, "chat_template": "none of the models has one"})
    config = found.files.get(CONFIG)
    if config is None and not found.has_own_tokenizer and base.folder is not None:
        name = join(base.prefix, CONFIG)
        config = base.folder.read(name) if name in base.folder.names() else None
    try:
        parsed = None if config is None else strict_json(config)
    except ValueError as error:
        raise InvalidPatch(f"{base.name}: {CONFIG} is not JSON: {error}") from error
    files = {**found.files, **template_files(text, parsed)}
    told = {**found.report, "chat_template": asked if len(asked) < 20 else "given", "files": sorted(files)}
    return replace(found, files=files, report=told)
