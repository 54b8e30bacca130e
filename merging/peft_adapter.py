"""Adapters as peft saves them: configuration, keys, and where their tensors belong in a base, for all its tuners.

Files: `adapter_config.json`, which says the tuner (peft_type), and `adapter_model.safetensors`. A tensor's key is
`base_model.model.` + the module's path + what the tuner adds; banks that all modules share lie at `base_model.<bank>`.
Prompts belong to no module: their names stand alone, and what is saved whole beside them follows `base_model.`
Beside its tuner's tensors a file may hold: modules_to_save and trained biases, stored whole; copies of resized
embeddings (`base_layer`); single rows of an embedding (`token_adapter.trainable_tokens_delta`).

A kind in `patches/` says with a `Tuner` what its keys, rules and terms are; all the rest is here. Never imports torch.
Source: peft 0.21 `utils/save_and_load.py`, `tuners/tuners_utils.py`, `utils/other.py`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.encodings import as_array
from adapterhub.merging.errors import InvalidPatch, NotFoldable, ShapeMismatch
from adapterhub.merging.folders import join, json_digest, read_json
from adapterhub.merging.patch import Effect, Exporter, Facts, Patch, PatchKind, SiteTerm, TrainingBase
from adapterhub.merging.replicas import layer_ranges, replicated
from adapterhub.merging.sites import Naming, Tie, is_conv1d, is_embedding, layers_of, naming, targets_of, tie_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
BANK_PREFIX = "base_model."

DTYPES = frozenset({"F16", "BF16", "F32", "F64"})
"""Dtypes that an adapter's values may have."""

MAX_TOKENS = 1_000_000
"""Most rows of an embedding that one adapter may list."""

_COPIES = {".base_layer.weight": "weight", ".base_layer.bias": "bias"}
_TOKENS = ".token_adapter.trainable_tokens_delta"
_MOST_SHOWN = 200
_SHOWN = ("task_type", "target_modules", "modules_to_save", "bias", "peft_version")
_UNHASHED = {"base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping", "task_type"}
"""Keys of the configuration that do not change what the patch is."""


@dataclass
class Module:
    """The tensors of one adapted module by field. copies: what it holds of the base's own, "weight" and "bias"."""

    path: str
    fields: dict[str, TensorHandle] = field(default_factory=dict)
    copies: dict[str, TensorHandle] = field(default_factory=dict)
    tokens: TensorHandle | None = None


@dataclass(frozen=True)
class Adapter:
    """One adapter's files, read as far as headers go.

    config: adapter_config.json as found. modules: by path. banks: shared tensors by their name below base_model. whole:
    tensors stored whole, by the base's parameter name.
    """

    file: str
    config: Mapping[str, Any]
    modules: Mapping[str, Module]
    banks: Mapping[str, TensorHandle]
    whole: Mapping[str, TensorHandle]

    @property
    def saved_modules(self) -> Sequence[str]:
        return sorted(self.config.get("modules_to_save") or [])

    def saves_whole(self, name: str) -> bool:
        """Whether the parameter belongs to a module of modules_to_save, which peft matches by the end of its path."""
        parents = [name[: match.start()] for match in re.finditer(r"\.", name)]
        return any(parent.endswith(one) for parent in parents for one in self.saved_modules)


def _no_sentences(adapter: Adapter, module: Module) -> Iterator[str]:
    return iter(())


def _no_terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    return iter(())


def _no_refusal(config: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class Tuner:
    """One of peft's tuners, as far as its files go.

    peft_type: as adapter_config.json says it; also_called: other spellings, of older versions or forks.
    fields: what the end of a key says: which field of its module. stem: instead, how the last part of a module's tensor
    begins, whose whole name is then its field. banks: names below `base_model.` that all modules share; one that ends
    with "." takes every name that begins so.
    required: fields that every module has, each a tuple of alternatives. shown: keys of the configuration that facts
    repeat. dtypes: of fields that are no floats. may_be_empty: fields that may hold no number.
    check: raises InvalidPatch for a configuration whose values are out of range; a refusal of the whole patch.
    contradictions: `(adapter, module)` gives sentences on what does not fit together; fields are there and sound.
    terms: `(adapter, module, sites)` gives the module's terms; raises ShapeMismatch where they do not fit.
    together: `(adapter, sites)` gives terms of all modules at once, beside those of `terms`.
    ranks: `(adapter, module)` gives the rank of its low-rank terms, None without any.
    why_not: `(configuration)` gives why it cannot be read as terms, None where it can.
    is_mine: `(configuration)` decides between kinds of one peft_type.
    loose: names that stand without a prefix, such as a prompt's; they are read as banks.
    disagreements: `(adapter)` gives sentences on what does not fit together in it as a whole.
    more: `(adapter)` gives facts that go beside the configuration's; called when there are no problems.
    """

    peft_type: str
    fields: Mapping[str, str] = field(default_factory=dict)
    terms: Callable[[Adapter, Module, Sites], Iterator[SiteTerm]] = _no_terms
    together: Callable[[Adapter, Sites], Iterator[SiteTerm]] = lambda adapter, sites: iter(())
    stem: str = ""
    required: Sequence[tuple[str, ...]] = ()
    also_called: frozenset[str] = frozenset()
    banks: Sequence[str] = ()
    shown: Sequence[str] = ()
    dtypes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    may_be_empty: frozenset[str] = frozenset()
    effect: Effect = "additive"
    check: Callable[[Mapping[str, Any], str], None] = lambda config, file: None
    contradictions: Callable[[Adapter, Module], Iterator[str]] = _no_sentences
    ranks: Callable[[Adapter, Module], int | None] = lambda adapter, module: None
    why_not: Callable[[Mapping[str, Any]], str | None] = _no_refusal
    is_mine: Callable[[Mapping[str, Any]], bool] = lambda config: True
    loose: Sequence[str] = ()
    disagreements: Callable[[Adapter], Iterator[str]] = lambda adapter: iter(())
    more: Callable[[Adapter], Mapping[str, Any]] = lambda adapter: {}

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether the configuration says this tuner, in whatever case."""
        said = str(config.get("peft_type")).upper()
        return said in (self.peft_type, *self.also_called) and self.is_mine(config)


def peft_kind(
    tuner: Tuner,
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    export: Exporter | None = None,
    folds: Literal["own", "peft"] = "own",
    has_factors: bool = False,
) -> PatchKind:
    """The patch kind of a tuner: recognised, checked, read and rebased alike for all of them."""
    return PatchKind(
        name=name,
        title=title,
        summary=summary,
        source=source,
        recognise=lambda folder, path: recognise(folder, path, tuner, name),
        read=lambda folder, path, base: read(folder, path, base, tuner, name),
        export=export,
        rebase=rebase,
        family="peft",
        folds="no" if tuner.effect == "runtime" else folds,
        has_factors=has_factors,
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def read_config(folder: Folder, path: str) -> dict[str, Any] | None:
    """adapter_config.json in `path`; None where there is none that could be read."""
    file = join(path, CONFIG)
    if file not in folder.names():
        return None
    try:
        return read_json(folder, file)
    except InvalidPatch:
        return None


def open_adapter(folder: Folder, path: str, config: Mapping[str, Any], tuner: Tuner) -> Adapter:
    """The adapter in `path`, its weights' header read. Raises InvalidPatch or BrokenContainer."""
    weights = join(path, WEIGHTS)
    if weights not in folder.names():
        pickled = join(path, "adapter_model.bin")
        hint = f"; {pickled} is a pickle and never opened, save it as safetensors" if pickled in folder.names() else ""
        raise InvalidPatch(f"{weights}: missing{hint}")
    tensors, _ = open_tensors(folder, weights, limit_bytes=PATCH_HEADER_BYTES)
    return _group(tensors, weights, config, tuner)


def _group(tensors: Mapping[str, TensorHandle], file: str, config: Mapping[str, Any], tuner: Tuner) -> Adapter:
    modules: dict[str, Module] = {}
    banks: dict[str, TensorHandle] = {}
    whole: dict[str, TensorHandle] = {}
    suffixes = sorted([*tuner.fields, *_COPIES, _TOKENS], key=len, reverse=True)
    for key, handle in tensors.items():
        if key in tuner.loose:
            banks[key] = handle
            continue
        bank = key.removeprefix(BANK_PREFIX)
        if bank != key and any(bank == one or (one.endswith(".") and bank.startswith(one)) for one in tuner.banks):
            banks[bank] = handle
            continue
        if tuner.loose and bank != key:
            whole[bank] = handle
            continue
        if not key.startswith(PREFIX):
            raise InvalidPatch(f"{file}: tensor {key[:200]} does not begin with {PREFIX!r}, as peft's do")
        name = key.removeprefix(PREFIX)
        path, dot, rest = name.partition("." + tuner.stem)
        if tuner.stem and dot:
            modules.setdefault(path, Module(path)).fields[tuner.stem + rest] = handle
            continue
        suffix = next((one for one in suffixes if name.endswith(one)), None)
        if suffix is None:
            whole[name] = handle
            continue
        path = name.removesuffix(suffix)
        module = modules.setdefault(path, Module(path))
        if suffix == _TOKENS:
            module.tokens = handle
        elif suffix in _COPIES:
            module.copies[_COPIES[suffix]] = handle
        else:
            module.fields[tuner.fields[suffix]] = handle
    return Adapter(file, config, dict(sorted(modules.items())), banks, dict(sorted(whole.items())))


def adapter_digest(folder: Folder, path: str, config: Mapping[str, Any], kind: str) -> str:
    """Over kind, configuration and weights. Lists of names are sets that peft saves in random order: they count sorted.

    Lists of numbers are sequences, such as a prompt's tokens.
    """
    counted = {key: _sorted(value) for key, value in config.items() if key not in _UNHASHED}
    return json_digest({"kind": kind, "config": counted, "weights": folder.digest(join(path, WEIGHTS))})


def _sorted(value: Any) -> Any:
    is_names = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return sorted(value) if is_names else value


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def contradictions(adapter: Adapter, tuner: Tuner) -> Iterator[str]:
    """Sentences on what in the files disagrees with itself or with the configuration."""
    if not adapter.modules and not adapter.whole and not adapter.banks:
        yield f"{adapter.file}: holds no tensor"
    if adapter.config.get("trainable_token_indices") and all(one.tokens is None for one in adapter.modules.values()):
        yield f"{adapter.file}: holds no trainable_tokens_delta, and {CONFIG} names trainable_token_indices"
    for module in adapter.modules.values():
        yield from (f"{adapter.file}: {module.path}: {one}" for one in _module_contradictions(adapter, module, tuner))
    for name, handle in adapter.whole.items():
        is_bias = adapter.config.get("bias", "none") != "none" and name.endswith(".bias")
        if not is_bias and not adapter.saves_whole(name) and not is_embedding(name):
            what = f"neither part of a {tuner.peft_type} adapter nor in modules_to_save"
            yield f"{adapter.file}: tensor {name[:200]} is {what}"
        if handle.dtype not in DTYPES:
            yield f"{adapter.file}: tensor {name[:200]} has dtype {handle.dtype}; {_either(DTYPES)} is expected"
    yield from (f"{adapter.file}: {one}" for one in tuner.disagreements(adapter))


def _module_contradictions(adapter: Adapter, module: Module, tuner: Tuner) -> Iterator[str]:
    if not module.fields and module.tokens is not None:
        return
    missing = [one for one in tuner.required if not any(name in module.fields for name in one)]
    if missing and not module.fields and module.copies:
        yield "has a copy of the base's weights and no part of an adapter"
        return
    if missing:
        stored: dict[str, str] = {}
        for suffix, name in tuner.fields.items():
            stored.setdefault(name, suffix.removeprefix(".").removesuffix(".weight"))
        has = ", ".join(sorted(stored[name] for name in module.fields)) or "nothing"
        yield f"has {has} and no {' or '.join(stored[name] for name in missing[0])}"
        return
    for name, handle in module.fields.items():
        allowed = tuner.dtypes.get(name, DTYPES)
        if handle.dtype not in allowed:
            yield f"{name} has dtype {handle.dtype}; {_either(allowed)} is expected"
            return
        if 0 in handle.shape and name not in tuner.may_be_empty:
            yield f"{name} is {handle.shape}: saved from a sharded run without gathering the weights"
            return
    yield from tuner.contradictions(adapter, module)


def _either(dtypes: frozenset[str]) -> str:
    return "one of " + ", ".join(sorted(dtypes)) if len(dtypes) > 1 else next(iter(dtypes))


_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*(/[A-Za-z0-9][A-Za-z0-9._\-]*)?")


def _local_base(config: Mapping[str, Any], file: str) -> list[str]:
    name = config.get("base_model_name_or_path")
    if not name or (isinstance(name, str) and _REPO_ID.fullmatch(name) and ".." not in name):
        return []
    sentence = f"{file}: base_model_name_or_path is {str(name)[:100]!r}, no repository"
    return [f"{sentence}; name the base as namespace/name and push again"]


def _check_common(config: Mapping[str, Any], file: str) -> None:
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(one, str) for one in saved):
        raise InvalidPatch(f"{file}: modules_to_save is {str(saved)[:100]}; a list of names is expected")


# ---- recognising -----------------------------------------------------------------------------------------------------


def recognise(folder: Folder, path: str, tuner: Tuner, kind: str) -> Facts | None:
    """Facts of an adapter of this tuner: an adapter_config.json whose peft_type says so. Reads headers alone."""
    config = read_config(folder, path)
    if config is None or not tuner.claims(config):
        return None
    file = join(path, CONFIG)
    facts = Facts(
        kind=kind,
        reason=f"{file} says peft_type {config['peft_type']!r}",
        path=path,
        files=(file,),
        effect=tuner.effect,
        base=training_base(config),
        detail=_detail(config, tuner),
    )
    try:
        _check_common(config, file)
        tuner.check(config, file)
        adapter = open_adapter(folder, path, config, tuner)
    except InvalidPatch as error:
        return replace(facts, problems=(str(error),))
    refusal = tuner.why_not(config)
    problems = [f"{file}: {refusal}"] if refusal else list(contradictions(adapter, tuner))
    if not problems:
        facts = replace(facts, detail={**facts.detail, **tuner.more(adapter)})
    return _with_tensors(facts, folder, adapter, tuner, [*problems, *_local_base(config, file)])


def training_base(config: Mapping[str, Any]) -> TrainingBase:
    """The base that adapter_config.json names."""
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    return TrainingBase(
        name=name if isinstance(name, str) and name else None, revision=revision if isinstance(revision, str) else None
    )


def _detail(config: Mapping[str, Any], tuner: Tuner) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in (*tuner.shown, *_SHOWN):
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, list):
            found[key] = sorted(map(str, value))[:_MOST_SHOWN]
        elif isinstance(value, bool | int | float):
            found[key] = value
        else:
            found[key] = str(value)[:1000]
    return found


def _with_tensors(facts: Facts, folder: Folder, adapter: Adapter, tuner: Tuner, problems: Sequence[str]) -> Facts:
    modules = adapter.modules.values()
    handles = [one for module in modules for one in (*module.fields.values(), *module.copies.values())]
    handles += [module.tokens for module in modules if module.tokens is not None]
    handles += [*adapter.banks.values(), *adapter.whole.values()]
    dtypes: Counter[str] = Counter()
    for handle in handles:
        dtypes[handle.dtype] += handle.numel
    found = [] if problems else [tuner.ranks(adapter, module) for module in modules if module.fields]
    ranks = [rank for rank in found if rank is not None]
    weights = join(facts.path, WEIGHTS)
    return replace(
        facts,
        files=(*facts.files, weights),
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        targets=targets_of(path for path, module in adapter.modules.items() if module.fields or module.tokens),
        layers=layers_of([*adapter.modules, *adapter.whole]),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(weights),
        problems=tuple(problems),
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Folder, path: str, base: Checkpoint | None, tuner: Tuner, kind: str) -> Patch:
    """The adapter as terms: its tuner's, and replace or replace_rows terms for what is stored whole.

    Raises InvalidPatch, NotFoldable, UnknownSite or ShapeMismatch.
    """
    facts = recognise(folder, path, tuner, kind)
    adapter = checked(folder, path, tuner)
    assert facts is not None
    digest = adapter_digest(folder, path, adapter.config, kind)
    if tuner.effect == "runtime":
        return Patch(facts, digest, ())
    names = [f"{module}.weight" for module in adapter.modules] + list(adapter.whole)
    ranges = layer_ranges(adapter.config, join(path, CONFIG))
    base = replicated(base, ranges) if base is not None else None
    sites = Sites(adapter, base, naming(names, base) if base else None, tie_of(base) if base else None)
    terms = [term for module in adapter.modules.values() for term in _module_terms(adapter, module, sites, tuner)]
    terms += tuner.together(adapter, sites)
    terms += [term for name, handle in adapter.whole.items() for term in _whole_terms(adapter, name, handle, sites)]
    return Patch(facts, digest, tuple(sorted(terms, key=lambda term: term.site)), ranges)


def checked(folder: Folder, path: str, tuner: Tuner) -> Adapter:
    """The adapter of this tuner in `path`, free of contradictions. Raises InvalidPatch, or NotFoldable by `why_not`."""
    config = read_config(folder, path)
    if config is None or not tuner.claims(config):
        raise InvalidPatch(f"{join(path, CONFIG)}: missing, or not of peft_type {tuner.peft_type}")
    file = join(path, CONFIG)
    refusal = tuner.why_not(config)
    if refusal:
        raise NotFoldable(f"{file}: {refusal}")
    _check_common(config, file)
    tuner.check(config, file)
    adapter = open_adapter(folder, path, config, tuner)
    contradiction = next(contradictions(adapter, tuner), None)
    if contradiction:
        raise InvalidPatch(contradiction)
    return adapter


@dataclass(frozen=True)
class Sites:
    """Where an adapter's modules are in a base; without a base, names as the adapter has them, nothing checked."""

    adapter: Adapter
    base: Checkpoint | None
    names: Naming | None
    tie: Tie | None
    made: dict[str, Any] = field(default_factory=dict, compare=False)
    """What was made for all modules of one reading, by name; see `once`."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call of this name and kept as long as the reading's handles."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def weight(self, module: str, delta: Sequence[int], *, is_embedding: bool = False) -> tuple[str, dict[str, Any]]:
        """The site of a module's weight and the options of a term that acts on it. Raises UnknownSite, ShapeMismatch.

        delta: shape of what is added, (out, in), a convolution's (out, in, k, k), an embedding's (dim, tokens).
        Options: transpose, whether the site stores (in, out); module, the path peft knows; layer: "linear", "conv1d",
        "embedding" or "conv", with its shape then; tied_output or tied_source where the base ties its embeddings, see
        `place`.
        """
        site, options = self.place(f"{module}.weight")
        return site, options | {"module": module} | self._orientation(module, tuple(delta), site, options, is_embedding)

    def bias(self, module: str, shape: Sequence[int]) -> str:
        """The site of a module's bias. Raises UnknownSite where the base's module has none, ShapeMismatch."""
        site, options = self.place(f"{module}.bias")
        self.check_shape(site, tuple(shape), options)
        return site

    def find(self, name: str) -> str | None:
        """The base's name of a parameter, None where it has none; without a base the name itself."""
        return name if self.names is None else self.names.find(name)

    def shape(self, module: str) -> tuple[int, ...] | None:
        """Shape of the module's weight as the base stores it; None without a base. Raises UnknownSite."""
        if self.base is None:
            return None
        return self.stored(*self.place(f"{module}.weight")).shape

    def in_features(self, module: str, out: int) -> int | None:
        """Inputs of a linear module of `out` outputs (or the reverse), however it is stored; None without a base.

        Raises UnknownSite, and ShapeMismatch where neither side of the weight is `out`.
        """
        shape = self.shape(module)
        if shape is None:
            return None
        if len(shape) != 2 or out not in shape:
            raise self._mismatch(module, (out,))
        return shape[1] if shape[0] == out else shape[0]

    def matrix(
        self, module: str, rows: int | None, columns: int, *, can_transpose: bool = False
    ) -> tuple[str, dict[str, Any]]:
        """`weight` of a linear module or a convolution, seen as a matrix (out, in) or (out, in·k·k).

        rows None: whatever the base has. Raises NotFoldable for a weight stored (in, out), where it may not be.
        """
        shape = self.shape(module)
        if shape is None or len(shape) == 2:
            site, options = self.weight(module, (rows or (shape or (columns,))[0], columns))
            if options["transpose"] and not can_transpose:
                kind = self.adapter.config.get("peft_type")
                raise NotFoldable(f"{site}: its weight is stored (in, out); peft's {kind} adapts none of this kind")
            return site, options
        if len(shape) < 2 or columns != prod(shape[1:]) or rows not in (None, shape[0]):
            raise self._mismatch(module, (rows or -1, columns))
        return self.weight(module, shape)

    def _mismatch(self, module: str, found: Sequence[int]) -> ShapeMismatch:
        assert self.base is not None
        return ShapeMismatch(f"{module}.weight", found, self.base.name, self.shape(module) or ())

    def place(self, name: str) -> tuple[str, dict[str, Any]]:
        """The base's name of a parameter, and what its tie asks for. Raises UnknownSite.

        tied_source: the site is the output embedding, which the base stores only as the input embedding of that name.
        tied_output: the site is that stored input embedding; the output must keep its own value under that name.
        peft adapts a module and not a storage, so either way the two come apart.
        """
        if self.names is None:
            return name, {}
        if self.tie is not None and self.names.find(name) is None and self.is_tied_output(name):
            return self.tie.output, {"tied_source": self.tie.stored}
        site = self.names.site(name)
        is_tied = self.tie is not None and site == self.tie.stored
        return site, {"tied_output": self.tie.output} if self.tie is not None and is_tied else {}

    def is_tied_output(self, name: str) -> bool:
        return self.tie is not None and name.endswith(self.tie.output)

    def stored(self, site: str, options: Mapping[str, Any]) -> TensorHandle:
        """The base's tensor behind a site. There must be a base."""
        assert self.base is not None
        return self.base.tensors[options.get("tied_source", site)]

    def check_shape(self, site: str, found: tuple[int, ...], options: Mapping[str, Any] | None = None) -> None:
        if self.base is not None and self.stored(site, options or {}).shape != found:
            raise ShapeMismatch(site, found, self.base.name, self.stored(site, options or {}).shape)

    def is_conv1d(self, module: str, delta: tuple[int, ...]) -> bool:
        """Whether the module's weight is stored (in, out) for a delta (out, in).

        A square weight does not show its orientation, so the base's model type decides; adapter_config's own flag only
        where there is no base, or one that does not say what it is.
        """
        declared = bool(self.adapter.config.get("fan_in_fan_out"))
        known = None if self.base is None else is_conv1d(module, self.base)
        if self.base is not None and known is None and delta[0] != delta[1]:
            return self.shape(module) == delta[::-1]
        return declared if known is None else known

    def _orientation(
        self, module: str, delta: tuple[int, ...], site: str, options: Mapping[str, Any], is_embedding: bool
    ) -> dict[str, Any]:
        if is_embedding:
            self.check_shape(site, delta[::-1], options)
            return {"transpose": True, "layer": "embedding"}
        if len(delta) > 2:
            self.check_shape(site, delta, options)
            return {"transpose": False, "layer": "conv", "shape": list(delta)}
        is_transposed = self.is_conv1d(module, delta)
        self.check_shape(site, delta[::-1] if is_transposed else delta, options)
        return {"transpose": is_transposed, "layer": "conv1d" if is_transposed else "linear"}


def _module_terms(adapter: Adapter, module: Module, sites: Sites, tuner: Tuner) -> Iterator[SiteTerm]:
    for name, handle in module.copies.items():
        yield from _copy_terms(f"{module.path}.{name}", handle, sites)
    if module.tokens is not None:
        yield rows_term(adapter, module, module.tokens, sites)
    if module.fields:
        yield from tuner.terms(adapter, module, sites)


def rows_term(adapter: Adapter, module: Module, value: TensorHandle, sites: Sites) -> SiteTerm:
    """Single rows of an embedding. On tied embeddings peft trains both ends at once, so they stay one tensor.

    Only rows of the output alone make it a tensor of its own.
    """
    indices = token_indices(adapter.config, module.path)
    if len(value.shape) != 2 or value.shape[0] != len(indices):
        raise InvalidPatch(f"{adapter.file}: {module.path}: {value.shape} rows for {len(indices)} token indices")
    site, options = sites.place(f"{module.path}.weight")
    if sites.base is not None:
        shape = sites.stored(site, options).shape
        if shape[1:] != value.shape[1:] or max(indices, default=0) >= shape[0]:
            raise ShapeMismatch(site, value.shape, sites.base.name, shape)
    stored = np.asarray(indices, "<i8")
    idx = TensorHandle.of_bytes(f"{module.path}.idx", "I64", stored.shape, stored.tobytes())
    own = {key: options[key] for key in ("tied_source",) if key in options}
    return SiteTerm(site, "replace_rows", {"idx": idx, "value": value}, options=own)


def token_indices(config: Mapping[str, Any], module: str) -> list[int]:
    """The rows that an adapter replaces in one embedding, in the order of its values. Raises InvalidPatch.

    A list stands for the input embedding; an object gives a list for each module, matched by the end of its path.
    """
    said = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(said, dict):
        said = next((value for key, value in said.items() if module == key or module.endswith("." + key)), [])
    is_whole = isinstance(said, list) and all(type(one) is int and one >= 0 for one in said)
    if not is_whole or len(set(said)) != len(said) or len(said) > MAX_TOKENS:
        raise InvalidPatch(
            f"{CONFIG}: token indices of {module} are {str(said)[:80]}; unique whole numbers are expected"
        )
    return list(said)


def _whole_terms(adapter: Adapter, name: str, handle: TensorHandle, sites: Sites) -> Iterator[SiteTerm]:
    """A replace term; a parameter that the base lacks, such as a new head, is created (option "create")."""
    if is_embedding(name) and not adapter.saves_whole(name):
        yield from _copy_terms(name, handle, sites)
    elif sites.find(name) is None and not sites.is_tied_output(name):
        yield SiteTerm(name, "replace", {"value": handle}, options={"create": True})
    else:
        site, options = sites.place(name)
        sites.check_shape(site, handle.shape, options)
        yield SiteTerm(site, "replace", {"value": handle}, options=options)


def _copy_terms(name: str, handle: TensorHandle, sites: Sites) -> Iterator[SiteTerm]:
    """peft saves embeddings whole beside their adapters: a term only where the copy differs from the base's."""
    if sites.base is None:
        return
    site, options = sites.place(name)
    stored = sites.stored(site, options)
    sites.check_shape(site, handle.shape, options)
    if handle.dtype != stored.dtype or handle.read() != stored.read():
        yield SiteTerm(site, "replace", {"value": handle}, options=options)


# ---- handles ---------------------------------------------------------------------------------------------------------


def computed(name: str, dtype: str, shape: Sequence[int], make: Callable[[], np.ndarray[Any, Any]]) -> TensorHandle:
    """A handle on values that are made from others when they are read. make: gives an array of that shape."""

    def read() -> memoryview:
        array = np.ascontiguousarray(make())
        assert array.shape == tuple(shape), f"{name}: made {array.shape}, {tuple(shape)} was said"
        return memoryview(array.reshape(-1).view(np.uint8).data).toreadonly() if array.size else memoryview(b"")

    return TensorHandle(name, dtype, tuple(shape), read)


def floats(name: str, shape: Sequence[int], make: Callable[[], np.ndarray[Any, Any]]) -> TensorHandle:
    """A float32 handle on values that `make` computes, in any float dtype, when they are read."""
    return computed(name, "F32", shape, lambda: make().astype("<f4"))


def reshaped(handle: TensorHandle, shape: Sequence[int]) -> TensorHandle:
    """The same numbers in another shape. Raises InvalidPatch where their count differs."""
    if prod(shape) != handle.numel:
        raise InvalidPatch(f"{handle.name}: is {handle.shape}; {tuple(shape)} is expected")
    return replace(handle, shape=tuple(shape))


def block_diagonal(handle: TensorHandle, count: int) -> TensorHandle:
    """(r, count·c) with the stored (r, c), cut into `count` parts of rows, on its diagonal. Raises InvalidPatch."""
    if len(handle.shape) != 2 or handle.shape[0] % count:
        raise InvalidPatch(f"{handle.name}: is {handle.shape}; a matrix of {count} blocks is expected")
    rows, columns = handle.shape[0] // count, handle.shape[1]

    def make() -> np.ndarray[Any, Any]:
        stored = as_array(handle).reshape(count, rows, columns)
        whole = np.zeros((count, rows, count, columns), stored.dtype)
        whole[np.arange(count), :, np.arange(count)] = stored
        return whole.reshape(count * rows, count * columns)

    return computed(handle.name, handle.dtype, (count * rows, count * columns), make)


def repeated(handle: TensorHandle, times: int) -> TensorHandle:
    """The tensor with each entry of its last axis `times` times, one after another."""
    shape = (*handle.shape[:-1], handle.shape[-1] * times)
    return computed(handle.name, handle.dtype, shape, lambda: np.repeat(as_array(handle), times, -1))


# ---- another base ----------------------------------------------------------------------------------------------------


def rebase(folder: Folder, path: str, base: TrainingBase) -> Mapping[str, bytes]:
    """adapter_config.json of an adapter as it reads once it belongs to `base`, laid out as peft writes it."""
    file = join(path, CONFIG)
    config = read_json(folder, file) | {"base_model_name_or_path": base.name, "revision": base.revision}
    return {file: json.dumps(config, indent=2, sort_keys=True).encode()}
