"""From a recipe and its inputs to what each tensor of the result is made of; everything is checked before any work.

A plan holds names, shapes and lazy handles, never values. `engine` runs it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any, Self

from adapterhub.merging import heads as heads_of
from adapterhub.merging import patches
from adapterhub.merging.alignment import Alignment, aligned_inputs, check_patches
from adapterhub.merging.attachments import Attachment, is_runtime, not_foldable, split
from adapterhub.merging.carried import Carried
from adapterhub.merging.casting import cast_model, cast_patch
from adapterhub.merging.checkpoint import DTYPE_BITS, Checkpoint, TensorHandle, check_fits, layout
from adapterhub.merging.contracts import joined
from adapterhub.merging.errors import (
    BaseMismatch,
    InvalidParameter,
    NotFoldable,
    NotRepresentable,
    PlanTooLarge,
    RecipeTooLarge,
    ShapeMismatch,
)
from adapterhub.merging.folders import Beside, join, json_digest
from adapterhub.merging.gguf import gguf_layout
from adapterhub.merging.heads import Head
from adapterhub.merging.layer_views import View, in_slice, layer_count, stacked_config
from adapterhub.merging.manifest import MANIFEST
from adapterhub.merging.methods import methods
from adapterhub.merging.ops.tiles import RELEASE_TILES, TILE_ELEMENTS
from adapterhub.merging.patch import Export, Patch, SiteTerm
from adapterhub.merging.predecessors import check_predecessors
from adapterhub.merging.quantised import SIMULATED, dequantised, quantisation_of
from adapterhub.merging.recipes import compositions
from adapterhub.merging.recipes.canonical import (
    MODEL,
    Input,
    Leaf,
    Merged,
    Normal,
    Part,
    Patched,
    base_of,
    canonical,
    kind_of,
    known,
    normalise,
    recipe_digest,
    slices_of,
)
from adapterhub.merging.recipes.head_policy import policy
from adapterhub.merging.recipes.nodes import Composed, Delta, Recipe, Ref, Stack
from adapterhub.merging.recipes.values import parameters_at, parameters_json
from adapterhub.merging.reduction import Reduction, limits_of
from adapterhub.merging.replicas import replicated
from adapterhub.merging.sites import depths, has_row_for_each_token
from adapterhub.merging.steps import Addend, MethodDelta, ModelDelta, OutputTensor, TermDelta, handles_of
from adapterhub.merging.terms import terms

MAX_TOTAL_RANK = 32_768
"""Most columns that the low-rank terms of one site may have together."""

RUNTIME_BYTES = 384 << 20
"""Memory of a merging process without its steps: Python, torch, what they keep, and what waits to be written."""

FLOATS: Mapping[str, str] = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes a result may have, and torch's names of them."""

_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.*",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""Files that a model needs beside weights and config.json: they go from the base into the result."""

_NEVER_COPIED = ("*.py", "*.bin", "*.pkl", "*.pt", "*.pth")


@dataclass(frozen=True)
class Plan:
    """Everything about a merge but its values.

    inputs: what each name of the recipe was resolved to. base.name is the base input's name. outputs: every tensor of
    the result, sorted by name; with `export` only the adapter is made, and there are none. config: the result's
    config.json. copied_files: paths in base.folder; files: others by name. vocabulary: what a tokenizer setting does to
    the models' vocabularies, {} without one. peak_bytes: memory of the largest step, for one worker; several
    workers take as much each. notes: sentences on what is allowed and worth knowing. attachments: run-time patches
    that go on the result while it is in memory, the lowest first; a plan whose result is written has none.
    contract: what the patches need to work besides the base, for a result that stays in memory. heads: patches on the
    result that are written beside it, one for each input's own head.
    """

    recipe: Recipe
    canonical: str
    inputs: tuple[tuple[Ref, Input], ...]
    base: Checkpoint
    outputs: tuple[OutputTensor, ...]
    export: Export | None
    config: Mapping[str, Any]
    metadata: Mapping[str, str]
    copied_files: tuple[str, ...]
    peak_bytes: int
    memory_bytes: int
    reduction: Reduction | None = None
    notes: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    contract: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    vocabulary: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[Head, ...] = ()

    @property
    def recipe_digest(self) -> str:
        return recipe_digest(self.canonical)

    @property
    def as_kind(self) -> str | None:
        """The patch kind that is made instead of a model."""
        return self.export.kind if self.export is not None else None

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of the weights in one file; shards add a header each."""
        if self.export is None:
            return layout({one.name: (one.dtype, one.shape) for one in self.outputs}, self.metadata).size_bytes
        planned = {one.name: (one.dtype, one.shape) for one in self.export.tensors}
        if self.export.pairs:
            return gguf_layout(planned, self.export.pairs).size_bytes
        return layout(planned, self.export.metadata).size_bytes

    @cached_property
    def touched(self) -> frozenset[str]:
        """Names of the tensors whose values differ from the base's tensor of that name."""
        return frozenset(one.name for one in self.outputs if one.addends or one.name != one.base.name)

    def describe(self) -> dict[str, Any]:
        """The plan as JSON: what goes in, what comes out, how much of both, and what is worth knowing."""
        return {
            "recipe": str(self.recipe),
            "recipe_digest": self.recipe_digest,
            "as": self.as_kind or MODEL,
            "base": self.base.name,
            "inputs": [
                {"ref": str(ref), "name": one.name, "path": one.path, "kind": one.kind, "licence": one.licence}
                for ref, one in self.inputs
            ],
            "tensors": len(self.outputs) if self.export is None else len(self.export.tensors),
            "tensors_touched": len(self.touched) if self.export is None else len(self.export.tensors),
            "size_bytes": self.size_bytes,
            "peak_bytes": self.peak_bytes,
            "copied_files": list(self.copied_files),
            "vocabulary": dict(self.vocabulary),
            "notes": list(self.notes),
        }


def plan(
    recipe: Recipe,
    inputs: Mapping[Ref, Input],
    *,
    as_kind: str | None = None,
    dtype: str | None = None,
    memory_bytes: int,
    attaches: bool = False,
    heads: str | None = None,
) -> Plan:
    """The plan of a recipe. Reads configurations, headers, tokenizers' files, and the indices of sparse patches.

    as_kind: a patch kind to make instead of a model; "model" makes one, and None what the recipe says. With ":r=16" or
    ":energy=0.99" after it the nearest patch of fewer ranks. dtype: of the result's floating-point tensors, "bfloat16"
    or "BF16"; None as the recipe says, else each tensor's. memory_bytes: what the steps may take, beside RUNTIME_BYTES
    of the process itself. attaches: whether the result stays in memory, where run-time patches can be put on it; else
    they are refused. heads: what becomes of the inputs' own heads, "keep:NAME", "multi" or "drop"; None refuses heads
    that differ, unless the recipe says it.
    Raises UnknownName, UnknownMethod, InvalidParameter, BaseMismatch, UnknownSite, ShapeMismatch, InvalidPatch,
    NotFoldable, NotStackable, NotRepresentable, RecipeTooLarge, PlanTooLarge.
    """
    form = recipe.form
    asked_heads = form.heads if heads is None else heads
    if isinstance(recipe.root, Composed):
        raise NotRepresentable(compositions.refusal(recipe.root))
    if isinstance(recipe.root, Stack):
        if asked_heads is not None:
            raise InvalidParameter(f"heads={asked_heads}: a stack has its last slice's head; merge heads before that")
        return _stack_plan(recipe, inputs, as_kind, dtype, memory_bytes, attaches=attaches)
    slices_of(recipe)
    as_kind = as_kind or form.as_kind or MODEL
    kind = None if as_kind == MODEL else as_kind
    references = known(recipe, inputs)
    base_ref = base_of(recipe, inputs)
    base, base_quantisation = _opened(inputs[base_ref], form.dtype)
    aligned = aligned_inputs(recipe, base_ref, base, inputs)
    if aligned.report and kind is not None:
        raise NotRepresentable(f"--as {kind}: a tokenizer setting is one of models; leave out either")
    chosen = policy(asked_heads, references)
    if chosen is not None and aligned.report:
        raise InvalidParameter(f"heads={chosen}: not with a tokenizer setting; merge the vocabularies first")
    any_head = chosen is not None
    read = {
        ref: _read(one, base, inputs.values(), form.dtype, aligned.of(ref), attaches=attaches, any_head=any_head)
        for ref, one in ((ref, inputs[ref]) for ref in references)
    }
    check_patches(read, inputs, aligned, attaches=attaches)
    digests = {ref: patch.digest for ref, patch in read.items()}
    whole = normalise(recipe, inputs, digests)
    used = {ref: read[ref] for ref in _refs(whole.parts)}
    check_predecessors(used, inputs, base)
    headed = heads_of.Outcome.of(chosen, read, used, inputs, base)
    read = headed.sums(read, is_patch=kind is not None)
    normal, attachments = split(whole, inputs, read)
    dtype = form.result_dtype if dtype is None else _float_name(dtype)
    base = _with_layers(aligned.models[base_ref], form.layers, attaches=attaches)
    base = _repeated(base, base_ref, read, inputs)
    sums = _Sums(base, read, inputs, normal, base_quantisation)
    outputs = () if kind is not None else heads_of.with_head(sums.outputs(dtype, aligned.dtypes), headed.placed)
    export, reduction = (None, None) if kind is None else _export(kind, normal, sums, read, inputs)
    return Plan(
        recipe=recipe,
        canonical=canonical(recipe, inputs, digests=digests, dtype=dtype, as_kind=as_kind, heads=chosen),
        inputs=tuple((ref, inputs[ref]) for ref in recipe.references()),
        base=base,
        outputs=outputs,
        export=export,
        config=headed.labelled(_config(base, sums.is_untied, dtype)),
        metadata={"format": "pt"},
        copied_files=tuple(filter(aligned.is_copied, _copied_files(base))) if kind is None else (),
        peak_bytes=_peak_bytes(outputs, export, memory_bytes),
        memory_bytes=memory_bytes,
        reduction=reduction,
        notes=(*recipe.notes, *_notes(read, inputs, base_ref, base_quantisation)),
        attachments=attachments,
        contract=joined(used, inputs, base) if attaches else {},
        heads=headed.beside if kind is None else (),
        files=aligned.files,
        vocabulary=aligned.report,
    )


def _with_layers(base: Checkpoint, layers: int | None, *, attaches: bool) -> Checkpoint:
    """The base with its first layers, as many as a recipe file says; all of them where it says nothing.

    Raises BaseMismatch where it has fewer, and NotFoldable where it has more and is served as it is.
    """
    if layers is None or layers == layer_count(base):
        return base
    found = View(0, layers).of_model(base)
    if attaches:
        raise NotFoldable(f"{base.name}: the recipe takes {layers} of its layers, which makes another model; merge it")
    return replace(found, config=stacked_config([(base.config, layer_count(base), range(layers))]))


def _stack_plan(
    recipe: Recipe,
    inputs: Mapping[Ref, Input],
    as_kind: str | None,
    dtype: str | None,
    memory_bytes: int,
    *,
    attaches: bool,
) -> Plan:
    """The plan of slices on top of one another, each planned as a recipe of views. Raises as `plan`."""
    if attaches or (as_kind or recipe.form.as_kind or MODEL) != MODEL:
        raise NotFoldable(
            f"{recipe}: a stack is a model of its own, neither a patch nor served on its base; merge it into a "
            "repository"
        )
    dtype = recipe.form.result_dtype if dtype is None else _float_name(dtype)
    known(recipe, inputs)
    parts = slices_of(recipe)
    bases = {ref: _opened(inputs[ref], recipe.form.dtype) for ref in (base_of(one, inputs) for one in parts)}
    lowest = next(iter(bases))
    aligned = aligned_inputs(recipe, lowest, bases[lowest][0], inputs)
    slices, start = [], 0
    for one in parts:
        slices.append(_Slice.of(one, inputs, start, bases, aligned))
        start = slices[-1].end
    outputs: list[OutputTensor] = []
    for number, part in enumerate(slices):
        is_first, is_last = number == 0, number == len(slices) - 1
        found = part.sums.outputs(dtype, aligned.dtypes)
        outputs += [one for one in found if in_slice(one.name, is_first=is_first, is_last=is_last)]
    outputs.sort(key=lambda one: one.name)
    _check_rows(outputs, slices[0].base.name)
    tensors = {one.name: one.base for one in outputs}
    whole = replace(slices[0].base, tensors=tensors, config=stacked_config(part.configured for part in slices))
    digests = {ref: patch.digest for part in slices for ref, patch in part.read.items()}
    return Plan(
        recipe=recipe,
        canonical=canonical(recipe, inputs, digests=digests, dtype=dtype, as_kind=MODEL),
        inputs=tuple((ref, inputs[ref]) for ref in recipe.references()),
        base=whole,
        outputs=tuple(outputs),
        export=None,
        config=_config(whole, any(part.sums.is_untied for part in slices), dtype),
        metadata={"format": "pt"},
        copied_files=tuple(filter(aligned.is_copied, _copied_files(whole))),
        peak_bytes=_peak_bytes(outputs, None, memory_bytes),
        memory_bytes=memory_bytes,
        notes=tuple(dict.fromkeys((*recipe.notes, *(note for part in slices for note in part.notes)))),
        files=aligned.files,
        vocabulary=aligned.report,
    )


def _check_rows(outputs: Iterable[OutputTensor], name: str) -> None:
    """Raises ShapeMismatch where the tables of a stack, which are of several models, have rows for other tokens."""
    tables = [one for one in outputs if has_row_for_each_token(one.name)]
    for one in tables[1:]:
        if one.shape[0] != tables[0].shape[0]:
            cure = f"{tables[0].name} comes from a model of another vocabulary; write tokenizer_source: union, or base"
            raise ShapeMismatch(one.name, one.shape, name, (tables[0].shape[0], *one.shape[1:]), cure)


@dataclass(frozen=True)
class _Slice:
    """One slice of a stack: its base and patches as views, numbered as in the result, and what is added where.

    end: one past its last layer in the result. configured: its base's configuration, layers, and those taken of them.
    """

    base: Checkpoint
    read: Mapping[Ref, Patch]
    sums: "_Sums"
    end: int
    configured: tuple[Mapping[str, Any], int, range]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        inputs: Mapping[Ref, Input],
        start: int,
        bases: Mapping[Ref, tuple[Checkpoint, str]],
        aligned: Alignment,
    ) -> Self:
        """The slice that begins at layer `start` of the result. bases: as `_opened` gives them. Raises as `plan`."""
        dtype, base_ref = recipe.form.dtype, base_of(recipe, inputs)
        model, quantisation = bases[base_ref]
        model = aligned.models[base_ref] if aligned.is_aligned else model
        views = {ref: View(*ref.layers, start) for ref in recipe.references() if ref.layers is not None}
        base = views[base_ref].of_model(model)
        read = {ref: _read_slice(ref, inputs, base, model, dtype, view, aligned) for ref, view in views.items()}
        check_patches(read, inputs, aligned, attaches=False)
        read = {ref: view.of_patch(read[ref]) for ref, view in views.items()}
        normal = normalise(recipe, inputs, {ref: patch.digest for ref, patch in read.items()})
        check_predecessors({ref: read[ref] for ref in _refs(normal.parts)}, inputs, model)
        first, end = views[base_ref].first, views[base_ref].end
        configured = model.config, layer_count(model), range(first, end)
        notes = tuple(_notes(read, inputs, base_ref, quantisation))
        return cls(base, read, _Sums(base, read, inputs, normal, quantisation), start + end - first, configured, notes)


def _opened(one: Input, dtype: str | None) -> tuple[Checkpoint, str]:
    """A base, dequantised and rounded to a dtype, and how it was quantised."""
    stored = Checkpoint.open(one.folder, one.path, name=one.name)
    return cast_model(dequantised(stored), dtype), quantisation_of(stored.config)


def _read_slice(
    ref: Ref,
    inputs: Mapping[Ref, Input],
    base: Checkpoint,
    model: Checkpoint,
    dtype: str | None,
    view: View,
    aligned: Alignment,
) -> Patch:
    """An input of a slice, before its layers are numbered anew. A full model need only fit in the layers of the slice.

    Raises BaseMismatch and ShapeMismatch where it does not, NotFoldable for a run-time patch.
    """
    one = inputs[ref]
    if one.kind != MODEL:
        patch = _read(one, model, inputs.values(), dtype, attaches=False)
        if patch.layer_ranges:
            raise NotFoldable(
                f"{one.name}: repeats layers of its base, which a stack does itself; merge it alone first"
            )
        return patch
    patch = kind_of(one).read(one.folder, one.path, None)
    patch = _of_model(patch, aligned.models[ref]) if aligned.is_aligned else cast_patch(patch, dtype)
    found = {view.name(term.site): term.fields["value"] for term in patch.terms}
    for name, handle in base.tensors.items():
        if name not in found:
            raise BaseMismatch(f"{one.name}: has no parameter {name} in {ref}, which {base.name!r} has")
        if found[name].shape != handle.shape:
            raise ShapeMismatch(name, found[name].shape, base.name, handle.shape)
    return patch


def _read(
    one: Input,
    base: Checkpoint,
    inputs: Iterable[Input],
    dtype: str | None,
    aligned: tuple[Checkpoint, Checkpoint] | None = None,
    *,
    attaches: bool,
    any_head: bool = False,
) -> Patch:
    """The patch, a full model rounded to `dtype`; a native one may take its delta from another input.

    aligned: a model re-indexed, and its base. any_head: whether a model's head may be of any size.
    """
    folder = one.folder
    if join(one.path, MANIFEST) in folder.names():
        folder = Beside(folder, [other.folder for other in inputs if other is not one and other.kind != MODEL])
    if one.kind == MODEL:
        patch = _read_model(one, base, dtype, aligned, any_head=any_head)
    else:
        patch = kind_of(one).read(folder, one.path, base)
    if is_runtime(patch) and not attaches:
        raise not_foldable(one, patch)
    here = base if aligned is None else aligned[1]
    missing = here.tensors.keys() - {term.site for term in patch.terms} if one.kind == MODEL else set()
    if missing:
        raise BaseMismatch(f"{one.name}: has no parameter {min(missing)}, which the base {base.name!r} has")
    return patch


def _read_model(
    one: Input,
    base: Checkpoint,
    dtype: str | None,
    aligned: tuple[Checkpoint, Checkpoint] | None,
    *,
    any_head: bool,
) -> Patch:
    """A full model as a patch. Raises ShapeMismatch, which for another vocabulary says what to do about it."""
    if aligned is not None:
        model, here = aligned
        check_fits(model, here)
        return _of_model(kind_of(one).read(one.folder, one.path, None), model)
    if any_head:
        patch = kind_of(one).read(one.folder, one.path, None)
        heads_of.check_fits(patch, base)
        return cast_patch(patch, dtype)
    try:
        return cast_patch(kind_of(one).read(one.folder, one.path, base), dtype)
    except ShapeMismatch as error:
        if not has_row_for_each_token(error.site):
            raise
        cure = (
            f"{one.name} has another vocabulary: a recipe file takes the tokens of both with tokenizer_source: union, "
            "and the base's alone with tokenizer_source: base"
        )
        raise ShapeMismatch(error.site, error.found, error.base, error.expected, cure) from error


def _of_model(patch: Patch, model: Checkpoint) -> Patch:
    """A full model's patch with the tensors of that model, which was aligned."""
    terms = tuple(SiteTerm(name, "replace", {"value": handle}) for name, handle in model.tensors.items())
    return replace(patch, terms=terms)


def _repeated(base: Checkpoint, base_ref: Ref, read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input]) -> Checkpoint:
    """The base with its layers repeated as the patches say. Raises NotFoldable where not all say the same."""
    ranges = {ref: patch.layer_ranges for ref, patch in read.items() if ref != base_ref}
    if len(set(ranges.values())) > 1:
        longer = next(ref for ref, one in ranges.items() if one)
        other = next(ref for ref, one in ranges.items() if one != ranges[longer])
        raise NotFoldable(
            f"{inputs[longer].name}: repeats layers of {base.name!r} (layer_replication), and {inputs[other].name} "
            "does not repeat the same; merge it alone, and use the longer model that results as a base"
        )
    return replicated(base, next(iter(ranges.values()), ()))


def _float_name(dtype: str) -> str:
    for name, torch_name in FLOATS.items():
        if dtype in (name, torch_name):
            return name
    raise InvalidParameter(f"dtype is {dtype!r}; it must be one of {', '.join(FLOATS.values())}")


# ---- tensors ---------------------------------------------------------------------------------------------------------


class _Sums:
    """What is added to each site: the recipe's flat sum, taken apart by site."""

    def __init__(
        self,
        base: Checkpoint,
        read: Mapping[Ref, Patch],
        inputs: Mapping[Ref, Input],
        normal: Normal,
        base_quantisation: str,
    ) -> None:
        self.base = base
        self._normal = normal
        self._inputs = inputs
        self._depths = depths(base.tensors)
        self._digests = {ref: patch.digest for ref, patch in read.items()}
        self._terms = {ref: _by_site(patch.terms) for ref, patch in read.items()}
        trained_on = {ref: _trained_on(inputs[ref], read[ref]) for ref in _refs(normal.parts)}
        self._quantisations = {
            ref: one
            for ref, one in trained_on.items()
            if inputs[ref].kind != MODEL and one in SIMULATED and one != base_quantisation
        }
        used = [term for ref in _refs(normal.parts) for terms in self._terms[ref].values() for term in terms]
        self._statistics = Carried(inputs, base)
        self._acting: dict[Merged, frozenset[str]] = {}
        self._created = _created(used, self._terms, _refs(normal.parts), inputs)
        self._untied = {
            term.options.get("tied_output", term.site): term.options.get("tied_source", term.site)
            for term in used
            if "tied_output" in term.options or "tied_source" in term.options
        }

    @property
    def is_untied(self) -> bool:
        """Whether input and output embedding, one tensor in the base, are two in the result."""
        return bool(self._untied)

    def outputs(self, dtype: str | None, dtypes: Mapping[str, str]) -> Iterator[OutputTensor]:
        """Every tensor of the result, sorted by name. dtypes: what some are stored in that are computed in more."""
        stored = dict(self.base.tensors)
        stored |= {output: stored[source] for output, source in self._untied.items()}
        for name in sorted(stored.keys() | self._created.keys()):
            handle = self._created[name] if name in self._created else stored[name]
            addends = () if name in self._created else tuple(self._addends(name, self._normal.parts))
            _check_rank(name, addends)
            _check_order(name, addends)
            _check_exact(name, addends)
            is_cast = dtype is not None and handle.dtype in FLOATS
            out_dtype = dtype if is_cast and dtype else dtypes.get(name, handle.dtype)
            yield OutputTensor(name, out_dtype, handle.shape, handle, addends, self._trained_on(name))

    def weighted_patches(self, part: Part, read: Mapping[Ref, Patch]) -> Iterator[tuple[float, Patch]]:
        """A sum whose weights differ from site to site as (weight, patch), each patch with the sites of that weight.

        Raises NotRepresentable for what is no term of a patch.
        """
        owners = {self._digests[ref]: ref for ref in _refs([part])}
        found: dict[tuple[Ref, float], list[SiteTerm]] = {}
        for site in dict.fromkeys(site for ref in owners.values() for site in self._terms[ref]):
            for addend in self._addends(site, [part]):
                if not isinstance(addend.delta, TermDelta):
                    raise NotRepresentable(f"{site}: what is added here is no term of a patch; make a model instead")
                key = owners[addend.delta.digest], addend.weight
                found.setdefault(key, []).append(addend.delta.term)
        for (ref, weight), site_terms in found.items():
            yield weight, replace(read[ref], terms=tuple(site_terms))

    def _trained_on(self, site: str) -> tuple[str, ...]:
        """How the bases were quantised that the site's patches were trained on, where this one is not."""
        return tuple(sorted({one for ref, one in self._quantisations.items() if site in self._terms[ref]}))

    def _addends(self, site: str, parts: Iterable[Part]) -> Iterator[Addend]:
        for part in parts:
            weight = part.weight_at(site, self._depths.get(site))
            if part.schedules and weight == 0.0:
                continue
            match part.leaf:
                case Patched(ref=ref) if self._inputs[ref].kind == MODEL:
                    yield from self._difference(site, weight, ref, None)
                case Patched(ref=ref):
                    for term in self._terms[ref].get(site, ()):
                        yield Addend(weight, TermDelta(term, self._digests[ref]))
                case Delta(model=model, base=base):
                    yield from self._difference(site, weight, model, base)
                case Merged():
                    yield from self._merged(site, weight, part.leaf)

    def _difference(self, site: str, weight: float, model: Ref, base: Ref | None) -> Iterator[Addend]:
        """What one full model has more than another, or than the base; nothing for a parameter only the result has."""
        if site not in self._terms[model]:
            return
        tuned = self._terms[model][site][0].fields["value"]
        here = self.base.tensors[site] if base is None else self._terms[base][site][0].fields["value"]
        is_number = tuned.dtype in FLOATS and here.dtype in FLOATS
        # Counters and index buffers are no weights: they need no arithmetic as long as they agree.
        if is_number or tuned.read() != here.read():
            yield Addend(weight, ModelDelta(tuned, here))

    def _merged(self, site: str, weight: float, leaf: Merged) -> Iterator[Addend]:
        """What a method makes at the site: the terms of a weighted sum, or its delta."""
        if not self._acts_on(leaf, site):
            return
        spec, depth = methods()[leaf.method], self._depths.get(site)
        inputs = tuple(tuple(self._addends(site, parts)) for parts in leaf.inputs)
        if not any(inputs) and not spec.moves_base:
            return
        weights = leaf.weights_at(site, depth)
        parameters = parameters_at(leaf.parameters, site, depth, leaf.method)
        try:
            spec.check_inputs(weights, parameters)
            spec.check(parameters)
            factors = spec.coefficients(weights, parameters) if spec.coefficients is not None else None
        except InvalidParameter as error:
            raise InvalidParameter(f"{site}: {error}") from error
        if factors is not None:
            for factor, addends in zip(factors, inputs, strict=True):
                yield from (replace(one, weight=weight * factor * one.weight) for one in addends)
            return
        for number, one in enumerate(inputs):
            _check_order(site, one)
            _check_mergeable(site, leaf.method, one)
            if number and spec.is_sequential:
                _check_comes_first(site, one)
        if spec.takes_trained:
            _check_trained(site, leaf.method, inputs)
        digests = tuple(self._digest(parts) for parts in leaf.inputs)
        statistics = self._statistics.at(site, leaf)
        made = MethodDelta(leaf.method, parameters, weights, inputs, digests, depth, statistics)
        yield Addend(weight, made)

    def _acts_on(self, leaf: Merged, site: str) -> bool:
        acts_on = methods()[leaf.method].acts_on
        if acts_on is None:
            return True
        if leaf not in self._acting:
            names = {name for parts in leaf.inputs for ref in _refs(parts) for name in self._terms[ref]}
            self._acting[leaf] = acts_on(sorted(names), leaf.parameters)
        return site in self._acting[leaf]

    def _digest(self, parts: Iterable[Part]) -> str:
        """Names what a sum is, so that random numbers belong to it wherever it stands."""
        return json_digest([[part.weight, *map(str, part.schedules), *self._named(part.leaf)] for part in parts])

    def _named(self, leaf: Leaf) -> list[Any]:
        match leaf:
            case Patched(ref=ref):
                return [self._digests[ref]]
            case Delta(model=model, base=base):
                return [self._digests[model], self._digests[base]]
            case Merged(method=method, parameters=parameters, weights=weights, inputs=inputs, schedules=schedules):
                told = [[list(map(str, one)) for one in schedules]] if schedules else []
                sums = [self._digest(parts) for parts in inputs]
                return [method, parameters_json(parameters), weights, sums, *told]


def _trained_on(one: Input, patch: Patch) -> str:
    """How the base was stored that a patch was trained on: what its files say, else what the input says."""
    said = patch.facts.base.quantisation
    return one.quantisation if said == "unknown" else said


def _by_site(terms: Iterable[SiteTerm]) -> Mapping[str, tuple[SiteTerm, ...]]:
    found: dict[str, tuple[SiteTerm, ...]] = {}
    for term in terms:
        found[term.site] = (*found.get(term.site, ()), term)
    return found


def _refs(parts: Iterable[Part]) -> list[Ref]:
    """Every patch or model of the sum but the base, nested ones too."""
    found: dict[Ref, None] = {}
    for part in parts:
        match part.leaf:
            case Patched(ref=ref):
                found[ref] = None
            case Delta(model=model, base=base):
                found |= {model: None, base: None}
            case Merged(inputs=inputs):
                found |= dict.fromkeys(ref for one in inputs for ref in _refs(one))
    return list(found)


def _created(
    used: Iterable[SiteTerm],
    terms: Mapping[Ref, Mapping[str, tuple[SiteTerm, ...]]],
    refs: Iterable[Ref],
    inputs: Mapping[Ref, Input],
) -> Mapping[str, TensorHandle]:
    """Parameters that the base lacks and one patch brings, such as a new head."""
    refs = list(refs)
    found: dict[str, TensorHandle] = {}
    for term in used:
        if not term.options.get("create"):
            continue
        if term.site in found:
            owners = " and ".join(inputs[ref].name for ref in refs if term.site in terms[ref])
            raise BaseMismatch(f"{term.site}: {owners} each bring their own, and the base has none to merge them on")
        found[term.site] = term.fields["value"]
    return found


def _check_rank(name: str, addends: Iterable[Addend]) -> None:
    deltas = [addend.delta for addend in addends]
    terms = [delta.term for delta in deltas if isinstance(delta, TermDelta) and delta.term.term == "lowrank"]
    rank = sum(term.fields["A"].shape[0] for term in terms)
    if rank > MAX_TOTAL_RANK:
        raise RecipeTooLarge(f"{name}: the ranks add up to {rank}; at most {MAX_TOTAL_RANK} are folded at once")


def _check_exact(name: str, addends: Sequence[Addend]) -> None:
    """Raises NotFoldable where stored bits have a weight or company: they mean nothing then."""
    for one in addends:
        if not isinstance(one.delta, TermDelta) or not terms()[one.delta.term.term].is_exact:
            continue
        if len(addends) > 1 or one.weight * one.delta.term.scale != 1.0:
            raise NotFoldable(
                f"{name}: an {one.delta.term.term} term is the bits of one fine-tuned tensor: it takes the weight 1 "
                "and nothing else on its parameter; extract a dense patch from the two models to merge it"
            )


def _check_mergeable(name: str, method: str, addends: Sequence[Addend]) -> None:
    """Raises NotFoldable for stored bits in a merge method, which computes with deltas."""
    exact = [term.term for term in _terms_of(addends) if terms()[term.term].is_exact]
    if exact:
        raise NotFoldable(
            f"{name}: an {exact[0]} term is the bits of one fine-tuned tensor, and {method} merges deltas; extract a "
            "dense patch from the two models instead"
        )


def _check_trained(name: str, method: str, inputs: Sequence[Sequence[Addend]]) -> None:
    """Raises NotFoldable for what is not one plain LoRA of one rank an input, in a method that merges A and B apart."""
    ranks = set()
    for addends in inputs:
        found = _terms_of(addends)
        is_lora = all(one.term == "lowrank" and one.fields.keys() == {"A", "B"} for one in found)
        if len(found) < len(addends) or len(found) > 1 or not is_lora:
            kinds = ", ".join(one.term for one in found) or "a difference of models"
            raise NotFoldable(
                f"{name}: {method} merges the factors of LoRAs as they were trained, and an input brings {kinds} here; "
                "task_arithmetic, ties and the other methods that merge deltas take it"
            )
        ranks |= {one.fields["A"].shape[0] for one in found}
    if len(ranks) > 1:
        raise NotFoldable(
            f"{name}: {method} merges factors entry by entry, and the ranks here are {sorted(ranks)}; core_space, "
            "knots and the methods that merge deltas take any"
        )


def _check_order(name: str, addends: Sequence[Addend]) -> None:
    """Raises NotFoldable where a patch multiplies the site's values and another patch acts there too."""
    owners = {
        one.delta.digest if isinstance(one.delta, TermDelta) else str(number) for number, one in enumerate(addends)
    }
    affine = [term.term for term in _terms_of(addends) if terms()[term.term].effect == "affine" or _is_frozen(term)]
    if affine and len(owners) > 1:
        raise NotFoldable(
            f"{name}: a {affine[0]} term changes the values it finds, so its result depends on what else acts there "
            "first; declare the order, as in sequence(base; a, b)"
        )


def _check_comes_first(name: str, addends: Sequence[Addend]) -> None:
    """Raises NotFoldable for values that stand for the base's own alone, where something was done to those before."""
    if any(_is_frozen(term) for term in _terms_of(addends)):
        raise NotFoldable(
            f"{name}: this patch is folded by peft on the base as it is, so it must be the first of a sequence here"
        )


def _terms_of(addends: Iterable[Addend]) -> list[SiteTerm]:
    return [one.delta.term for one in addends if isinstance(one.delta, TermDelta)]


def _is_frozen(term: SiteTerm) -> bool:
    """Whether a replacing term stands for one that changes what it finds, worked out for the base's values alone."""
    return bool(term.options.get("affine"))


# ---- patches ---------------------------------------------------------------------------------------------------------


def _export(
    as_kind: str, normal: Normal, sums: _Sums, read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input]
) -> tuple[Export, Reduction | None]:
    """The patch that is made, exact; and how its ranks are to be reduced, where as_kind says so as in "lora:r=16"."""
    kind, _, asked = as_kind.partition(":")
    spec = patches.kinds().get(kind)
    if spec is None or spec.export is None:
        able = ", ".join(name for name, one in patches.kinds().items() if one.export)
        raise NotRepresentable(f"--as {kind}: a sum of patches can be written as {able}")
    addends: list[tuple[float, Patch]] = []
    for part in normal.parts:
        leaf = part.leaf
        if isinstance(leaf, Patched) and not part.schedules:
            addends.append((part.weight, read[leaf.ref]))
            continue
        is_sum = isinstance(leaf, Patched) or (isinstance(leaf, Merged) and methods()[leaf.method].is_linear)
        if not is_sum:
            what = leaf.method if isinstance(leaf, Merged) else str(leaf)
            raise NotRepresentable(f"--as {kind}: {what} is no weighted sum of patches; leave out --as to get a model")
        addends += sums.weighted_patches(part, read)
    if not addends:
        raise NotRepresentable(f"--as {kind}: the recipe adds nothing to its base")
    name = inputs[normal.base].name.partition("@")[0]
    exact = spec.export(addends, name, sums.base)
    if not asked:
        return exact, None
    return exact, Reduction(asked, *limits_of(asked), spec.export, addends, name, sums.base)


# ---- files -----------------------------------------------------------------------------------------------------------


def _config(base: Checkpoint, is_untied: bool, dtype: str | None) -> Mapping[str, Any]:
    config = dict(base.config)
    if is_untied:
        config["tie_word_embeddings"] = False
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = FLOATS[dtype]
    return config


def _copied_files(base: Checkpoint) -> tuple[str, ...]:
    if base.folder is None:
        return ()
    start = join(base.prefix, "")
    names = (name.removeprefix(start) for name in base.folder.names() if name.startswith(start))
    return tuple(start + name for name in names if "/" not in name and _is_copied(name))


def _is_copied(name: str) -> bool:
    is_wanted = any(fnmatchcase(name, pattern) for pattern in _COPIED)
    return is_wanted and not any(fnmatchcase(name, pattern) for pattern in _NEVER_COPIED)


def _notes(read: Mapping[Ref, Patch], inputs: Mapping[Ref, Input], base: Ref, base_quantisation: str) -> Iterator[str]:
    """Sentences on a quantised base, and on patches trained on another base, or on one quantised otherwise."""
    if base_quantisation != "none":
        yield f"{base} is stored as {base_quantisation}; its weights are dequantised, and so is the result"
    base_name = inputs[base].name.partition("@")[0]
    for ref, patch in read.items():
        trained_on = patch.facts.base
        if trained_on.name is not None and trained_on.name != base_name:
            yield f"{ref} says it was trained on {trained_on.name}, not on {base_name}; port it if they differ"
        quantisation = _trained_on(inputs[ref], patch)
        if inputs[ref].kind != MODEL and quantisation not in ("none", "unknown", base_quantisation):
            yield f"{ref} was trained on a base quantised as {quantisation}, and this one is not"


# ---- size ------------------------------------------------------------------------------------------------------------


def _peak_bytes(outputs: Iterable[OutputTensor], export: Export | None, memory_bytes: int) -> int:
    """Memory of the largest step. Raises PlanTooLarge, which names its tensor."""
    steps = {one.name: _step_bytes(one) for one in outputs if not one.is_copy or one.base.is_computed}
    if export is not None:
        steps = {one.name: 2 * _bytes(one.dtype, one.shape) for one in export.tensors}
    largest = max(steps, key=lambda name: steps[name], default=None)
    if largest is None:
        return 0
    if steps[largest] > memory_bytes:
        raise PlanTooLarge(
            f"{largest}: takes {steps[largest]} bytes of memory to compute, and {max(0, memory_bytes)} are left for "
            "it beside the process itself; allow more, or merge in a smaller dtype"
        )
    return steps[largest]


def _step_bytes(output: OutputTensor) -> int:
    """Memory to compute one tensor: tiles, the part of each mapped file that they read, and what must be had whole."""
    numel = prod(output.shape)
    columns = numel // max(1, output.shape[0]) if output.shape else numel
    tile = min(numel, max(TILE_ELEMENTS, columns))
    width = 8 if "F64" in (output.dtype, output.base.dtype) else 4
    stored = [output.base, *(handle for handle in handles_of(output.addends) if prod(handle.shape) == numel)]
    held = sum(_held_bytes(handle, tile) for handle in {id(one): one for one in stored}.values())
    whole = width * numel if output.quantisations else 0
    return (
        held + whole + 8 * width * tile + sum(_addend_bytes(one, output.shape, tile, width) for one in output.addends)
    )


def _held_bytes(handle: TensorHandle, tile: int) -> int:
    """Memory that a tensor's stored bytes take while tiles of it are read."""
    window = RELEASE_TILES * _bytes(handle.dtype, (tile,))
    return min(handle.nbytes, window) if handle.is_mapped else handle.nbytes


def _addend_bytes(addend: Addend, shape: tuple[int, ...], tile: int, width: int) -> int:
    match addend.delta:
        case TermDelta(term=term):
            # Factors and values are widened to float32, positions to int64, beside what is stored.
            return sum(handle.nbytes + 8 * handle.numel for handle in term.fields.values())
        case MethodDelta(method=method, inputs=inputs, statistics=statistics):
            inner = sum(_addend_bytes(one, shape, tile, width) for parts in inputs for one in parts)
            # Packed float32 triangles become whole float64 matrices: four times the bytes, beside what is stored.
            inner += sum(5 * one.nbytes for carried in statistics for one in carried.handles)
            if methods()[method].by_pieces is not None and (len(shape) > 1 or prod(shape) <= TILE_ELEMENTS):
                return inner + width * tile * (8 * len(inputs) + 16)  # words, ranks, sort keys and counts beside deltas
            return inner + width * prod(shape) * (len(inputs) + 3)
        case ModelDelta():
            return 2 * width * tile


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * DTYPE_BITS[dtype] // 8
