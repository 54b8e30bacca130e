"""lora: low-rank adapters as peft's LORA tuner saves them.

Files: `adapter_config.json` with peft_type "LORA" and `adapter_model.safetensors`. A module's delta is scaling · B @ A
with scaling = alpha / r, or alpha / sqrt(r) with use_rslora; r and alpha may differ by module through rank_pattern and
alpha_pattern. modules_to_save, saved biases and resized embeddings are stored whole and replace the base's values.
What changes the base during training or acts on the input (DoRA, PiSSA, aLoRA, ...) is recognised, and not read.

Source: arXiv:2106.09685; peft 0.21 `tuners/lora/{config,layer,model}.py`, `utils/save_and_load.py`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.errors import InvalidPatch, NotFoldable, NotRepresentable, ShapeMismatch
from adapterhub.merging.folders import join, json_digest, read_json
from adapterhub.merging.patch import Export, ExportTensor, Facts, Patch, PatchKind, SiteTerm, TrainingBase
from adapterhub.merging.patterns import matching, positive, read_pattern
from adapterhub.merging.sites import Naming, Tie, is_conv1d, is_embedding, layers_of, naming, targets_of, tie_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_FIELDS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_B.bias": "bias",
    ".base_layer.weight": "base_weight",
    ".base_layer.bias": "base_bias",
}
"""What the end of a key says: which field of its module."""

_DTYPES = {"F16", "BF16", "F32", "F64"}
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NOT_MERGED: Mapping[str, str] = {
    "use_dora": "DoRA's result depends on the norms of the base's weights",
    "alora_invocation_tokens": "an activated LoRA acts only after its invocation tokens",
    "use_qalora": "QA-LoRA acts on pooled inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA removes the smallest singular components of the base",
    "arrow_config": "Arrow routes between several adapters by the input",
    "layer_replication": "its layers are replicas of the base's",
    "target_parameters": "it adapts stacked expert parameters",
    "trainable_token_indices": "it replaces single rows of an embedding",
    "lora_nums": "LoRAMoE routes between several adapters by the input",
}
"""Keys of adapter_config.json that make the tensors something else than plain LoRA, and why."""

_MOST_SHOWN = 200
"""Most names of a list that facts repeat."""

_UNHASHED = {"base_model_name_or_path", "revision", "peft_version", "inference_mode", "auto_mapping", "task_type"}
"""Keys of the configuration that do not change what the patch is."""


# ---- configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    """The keys of adapter_config.json that decide the delta, checked for type and range."""

    raw: Mapping[str, Any]
    r: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]

    @property
    def saves_biases(self) -> bool:
        return bool(self.raw.get("bias", "none") != "none")

    def saves_whole(self, name: str) -> bool:
        """Whether the parameter belongs to a module of modules_to_save, which peft matches by the end of its path."""
        parents = [name[: match.start()] for match in re.finditer(r"\.", name)]
        return any(parent.endswith(one) for parent in parents for one in self.modules_to_save)

    def rank(self, module: str) -> float:
        return matching(self.rank_pattern, module, self.r)

    def scaling(self, module: str, r: int) -> float:
        """alpha / r, or alpha / sqrt(r), of one module. Source: peft `tuners/lora/layer.py`, update_layer."""
        alpha = matching(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(r) if self.raw.get("use_rslora") else alpha / r


def _parse(raw: Mapping[str, Any], file: str) -> _Config:
    r, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
    if type(r) is not int or not 0 < r <= 65536:
        raise InvalidPatch(f"{file}: r is {r!r}; a whole number from 1 to 65536 is expected")
    patterns = [read_pattern(raw.get(key) or {}, f"{file}: {key}") for key in ("rank_pattern", "alpha_pattern")]
    saved = raw.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(one, str) for one in saved):
        raise InvalidPatch(f"{file}: modules_to_save is {str(saved)[:100]}; a list of names is expected")
    return _Config(raw, r, positive(alpha, f"{file}: lora_alpha"), patterns[0], patterns[1], tuple(sorted(saved)))


def _not_merged(raw: Mapping[str, Any], file: str) -> str | None:
    """Why the tensors are no plain LoRA, None where they are."""
    for key, why in _NOT_MERGED.items():
        if raw.get(key) not in (None, False, [], {}):
            return f"{file}: {key} is set: {why}; it is stored and shown, and not merged"
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS):
        return f"{file}: init_lora_weights is {init!r}, which changed the base in training; convert it to a plain LoRA"
    return None


# ---- tensors ---------------------------------------------------------------------------------------------------------


@dataclass
class _Module:
    """The tensors of one adapted module by field; is_embedding where peft named them lora_embedding_*."""

    path: str
    fields: dict[str, TensorHandle] = field(default_factory=dict)
    is_embedding: bool = False

    @property
    def r(self) -> int:
        return self.fields["A"].shape[0]

    @property
    def delta_shape(self) -> tuple[int, ...]:
        """Shape of B @ A: (out, in), a convolution's (out, in, k, k), an embedding's (dim, tokens)."""
        return (self.fields["B"].shape[0], *self.fields["A"].shape[1:])


@dataclass(frozen=True)
class _Adapter:
    """The whole file: adapted modules by path, and tensors stored whole by the base's parameter name."""

    modules: Mapping[str, _Module]
    whole: Mapping[str, TensorHandle]


def _group(tensors: Mapping[str, TensorHandle], file: str) -> _Adapter:
    modules: dict[str, _Module] = {}
    whole: dict[str, TensorHandle] = {}
    for key, handle in tensors.items():
        if not key.startswith(PREFIX):
            raise InvalidPatch(f"{file}: tensor {key} does not begin with {PREFIX!r}, as peft's do")
        name = key.removeprefix(PREFIX)
        suffix = next((one for one in _FIELDS if name.endswith(one)), None)
        if suffix is None:
            whole[name] = handle
            continue
        module = modules.setdefault(name.removesuffix(suffix), _Module(name.removesuffix(suffix)))
        module.fields[_FIELDS[suffix]] = handle
        module.is_embedding |= "embedding" in suffix
    return _Adapter(dict(sorted(modules.items())), dict(sorted(whole.items())))


def _contradictions(config: _Config, adapter: _Adapter, file: str) -> Iterator[str]:
    """Sentences on what in the file disagrees with itself or with the configuration."""
    if not adapter.modules and not adapter.whole:
        yield f"{file}: holds no tensor"
    for module in adapter.modules.values():
        yield from (f"{file}: {module.path}: {sentence}" for sentence in _module_contradictions(config, module))
    for name, handle in adapter.whole.items():
        is_bias = config.saves_biases and name.endswith(".bias")
        if not is_bias and not config.saves_whole(name) and not is_embedding(name):
            yield f"{file}: tensor {name} is neither a LoRA factor nor in modules_to_save"
        if handle.dtype not in _DTYPES:
            yield f"{file}: tensor {name} has dtype {handle.dtype}; one of {', '.join(sorted(_DTYPES))} is expected"


def _module_contradictions(config: _Config, module: _Module) -> Iterator[str]:
    A, B = module.fields.get("A"), module.fields.get("B")
    if A is None and B is None:
        if "bias" in module.fields or "base_weight" in module.fields:
            yield "has parts of an adapter and neither lora_A nor lora_B"
        return
    if A is None or B is None:
        yield f"has lora_{'A' if B is None else 'B'} and no lora_{'B' if B is None else 'A'}"
        return
    for name, handle in module.fields.items():
        if handle.dtype not in _DTYPES:
            yield f"{name} has dtype {handle.dtype}; one of {', '.join(sorted(_DTYPES))} is expected"
    if len(A.shape) < 2 or len(B.shape) < 2 or 0 in A.shape + B.shape:
        yield f"lora_A is {A.shape} and lora_B {B.shape}: saved from a sharded run without gathering the weights"
        return
    if A.shape[0] != B.shape[1] or set(B.shape[2:]) - {1}:
        yield f"lora_A is {A.shape} and lora_B {B.shape}: their ranks differ"
        return
    if A.shape[0] != config.rank(module.path):
        yield f"its rank is {A.shape[0]}, {CONFIG} says {config.rank(module.path):g} (r or rank_pattern)"


# ---- recognising -----------------------------------------------------------------------------------------------------


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of a LoRA: an adapter_config.json whose peft_type is LORA."""
    file = join(path, CONFIG)
    if file not in folder.names():
        return None
    try:
        raw = read_json(folder, file)
    except InvalidPatch:
        return None
    if str(raw.get("peft_type")).upper() != "LORA":
        return None
    facts = Facts(
        kind="lora",
        reason=f"{file} says peft_type {raw['peft_type']!r}",
        path=path,
        files=(file,),
        effect="runtime" if raw.get("alora_invocation_tokens") else "additive",
        base=_training_base(raw),
        detail=_detail(raw),
    )
    try:
        config, adapter = _open(folder, path, raw)
    except InvalidPatch as error:
        return replace(facts, problems=(str(error),))
    problems = [_not_merged(raw, file)] if _not_merged(raw, file) else list(_contradictions(config, adapter, WEIGHTS))
    return _with_tensors(facts, folder, adapter, [*filter(None, problems), *_local_base(raw, file)])


def _open(folder: Folder, path: str, raw: Mapping[str, Any]) -> tuple[_Config, _Adapter]:
    weights = join(path, WEIGHTS)
    config = _parse(raw, join(path, CONFIG))
    if weights not in folder.names():
        pickled = join(path, "adapter_model.bin")
        hint = f"; {pickled} is a pickle and never opened, save it as safetensors" if pickled in folder.names() else ""
        raise InvalidPatch(f"{weights}: missing{hint}")
    tensors, _ = open_tensors(folder, weights, limit_bytes=PATCH_HEADER_BYTES)
    return config, _group(tensors, weights)


def _with_tensors(facts: Facts, folder: Folder, adapter: _Adapter, problems: Sequence[str]) -> Facts:
    handles = [one for module in adapter.modules.values() for one in module.fields.values()]
    handles += adapter.whole.values()
    dtypes: Counter[str] = Counter()
    for handle in handles:
        dtypes[handle.dtype] += handle.numel
    ranks = [module.r for module in adapter.modules.values() if module.fields.get("A") and module.fields["A"].shape]
    weights = join(facts.path, WEIGHTS)
    return replace(
        facts,
        files=(*facts.files, weights),
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        targets=targets_of(adapter.modules),
        layers=layers_of([*adapter.modules, *adapter.whole]),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(weights),
        problems=tuple(problems),
    )


def _training_base(raw: Mapping[str, Any]) -> TrainingBase:
    name, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    return TrainingBase(
        name=name if isinstance(name, str) and name else None, revision=revision if isinstance(revision, str) else None
    )


_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*(/[A-Za-z0-9][A-Za-z0-9._\-]*)?")


def _local_base(raw: Mapping[str, Any], file: str) -> list[str]:
    name = raw.get("base_model_name_or_path")
    if not name or (isinstance(name, str) and _REPO_ID.fullmatch(name) and ".." not in name):
        return []
    sentence = f"{file}: base_model_name_or_path is {str(name)[:100]!r}, no repository"
    return [f"{sentence}; name the base as namespace/name and push again"]


def _detail(raw: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "task_type", "init_lora_weights", "peft_version")
    found = {key: raw[key] for key in shown if key in raw}
    for key in ("target_modules", "modules_to_save"):
        value = raw.get(key)
        if value:
            found[key] = sorted(map(str, value))[:_MOST_SHOWN] if isinstance(value, list) else str(value)[:1000]
    return found


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter as lowrank terms, dense terms for lora_bias, replace terms for what is stored whole.

    Options of a lowrank term: transpose; module, the path peft knows; layer: "linear", "conv1d", "embedding" or "conv";
    tied_output or tied_source where the base ties its embeddings (see `_site`).
    """
    facts = recognise(folder, path)
    if facts is None:
        raise InvalidPatch(f"{join(path, CONFIG)}: missing, or not of peft_type LORA")
    raw = read_json(folder, join(path, CONFIG))
    refusal = _not_merged(raw, join(path, CONFIG))
    if refusal:
        raise NotFoldable(refusal)
    config, adapter = _open(folder, path, raw)
    contradiction = next(_contradictions(config, adapter, join(path, WEIGHTS)), None)
    if contradiction:
        raise InvalidPatch(contradiction)
    names = [f"{module}.weight" for module in adapter.modules] + list(adapter.whole)
    reader = _Reader(config, base, naming(names, base) if base else None, tie_of(base) if base else None)
    terms = [term for module in adapter.modules.values() for term in reader.module_terms(module)]
    terms += [term for name, handle in adapter.whole.items() for term in reader.whole_terms(name, handle)]
    return Patch(facts, _digest(folder, path, raw), tuple(sorted(terms, key=lambda term: term.site)))


def _digest(folder: Folder, path: str, raw: Mapping[str, Any]) -> str:
    """Lists in the configuration are sets that peft saves in random order; they count sorted."""
    config = {
        key: sorted(map(str, value)) if isinstance(value, list) else value
        for key, value in raw.items()
        if key not in _UNHASHED
    }
    return json_digest({"kind": "lora", "config": config, "weights": folder.digest(join(path, WEIGHTS))})


@dataclass(frozen=True)
class _Reader:
    config: _Config
    base: Checkpoint | None
    names: Naming | None
    tie: Tie | None

    def module_terms(self, module: _Module) -> Iterator[SiteTerm]:
        for name in ("weight", "bias"):
            if f"base_{name}" in module.fields:
                yield from self._copy_terms(f"{module.path}.{name}", module.fields[f"base_{name}"])
        if "A" not in module.fields:
            return
        site, options = self._site(f"{module.path}.weight")
        options |= {"module": module.path, **self._orientation(module, site, options)}
        factors = {"A": module.fields["A"], "B": module.fields["B"]}
        scale = self.config.scaling(module.path, module.r)
        yield SiteTerm(site, "lowrank", factors, scale, options)
        if "bias" in module.fields:
            bias_site, _ = self._site(f"{module.path}.bias")
            self._check_shape(bias_site, module.fields["bias"].shape)
            yield SiteTerm(bias_site, "dense", {"delta": module.fields["bias"]}, scale)

    def whole_terms(self, name: str, handle: TensorHandle) -> Iterator[SiteTerm]:
        """A replace term; a parameter that the base lacks, such as a new head, is created (option "create")."""
        if is_embedding(name) and not self.config.saves_whole(name):
            yield from self._copy_terms(name, handle)
        elif self.names is not None and self.names.find(name) is None and not self._is_tied_output(name):
            yield SiteTerm(name, "replace", {"value": handle}, options={"create": True})
        else:
            site, options = self._site(name)
            self._check_shape(site, handle.shape, options)
            yield SiteTerm(site, "replace", {"value": handle}, options=options)

    def _copy_terms(self, name: str, handle: TensorHandle) -> Iterator[SiteTerm]:
        """peft saves embeddings whole beside their adapters: a term only where the copy differs from the base's."""
        if self.base is None:
            return
        site, options = self._site(name)
        stored = self._stored(site, options)
        self._check_shape(site, handle.shape, options)
        if handle.dtype != stored.dtype or handle.read() != stored.read():
            yield SiteTerm(site, "replace", {"value": handle}, options=options)

    def _is_tied_output(self, name: str) -> bool:
        return self.tie is not None and name.endswith(self.tie.output)

    def _site(self, name: str) -> tuple[str, dict[str, Any]]:
        """The base's name of a parameter, and what its tie asks for.

        tied_source: the site is the output embedding, which the base stores only as the input embedding of that name.
        tied_output: the site is that stored input embedding; the output must keep its own value under that name.
        peft adapts a module and not a storage, so either way the two come apart.
        """
        if self.names is None:
            return name, {}
        if self.tie is not None and self.names.find(name) is None and self._is_tied_output(name):
            return self.tie.output, {"tied_source": self.tie.stored}
        site = self.names.site(name)
        is_tied = self.tie is not None and site == self.tie.stored
        return site, {"tied_output": self.tie.output} if self.tie is not None and is_tied else {}

    def _stored(self, site: str, options: Mapping[str, Any]) -> TensorHandle:
        assert self.base is not None
        return self.base.tensors[options.get("tied_source", site)]

    def _check_shape(self, site: str, found: tuple[int, ...], options: Mapping[str, Any] | None = None) -> None:
        if self.base is not None and self._stored(site, options or {}).shape != found:
            raise ShapeMismatch(site, found, self.base.name, self._stored(site, options or {}).shape)

    def _orientation(self, module: _Module, site: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Whether the delta (out, in) is added transposed, and the kind of layer. Raises ShapeMismatch.

        A square weight does not show its orientation, so the base's model type decides; adapter_config's own flag only
        where there is no base, or one that does not say what it is.
        """
        delta = module.delta_shape
        if module.is_embedding:
            self._check_shape(site, delta[::-1], options)
            return {"transpose": True, "layer": "embedding"}
        if len(delta) > 2:
            self._check_shape(site, delta, options)
            return {"transpose": False, "layer": "conv"}
        declared = bool(self.config.raw.get("fan_in_fan_out"))
        known = None if self.base is None else is_conv1d(module.path, self.base)
        is_transposed = declared if known is None else known
        if self.base is not None and known is None and delta[0] != delta[1]:
            is_transposed = self._stored(site, options).shape == delta[::-1]
        self._check_shape(site, delta[::-1] if is_transposed else delta, options)
        return {"transpose": is_transposed, "layer": "conv1d" if is_transposed else "linear"}


# ---- writing ---------------------------------------------------------------------------------------------------------


def export(addends: Sequence[tuple[float, Patch]], base_name: str) -> Export:
    """The weighted sum of adapters as one: per module A's stacked and B's side by side, weights in B, scaling 1.

    Ranks add up and may differ by module (rank_pattern). Raises NotRepresentable for anything but low-rank terms.
    """
    parts: dict[str, list[tuple[float, SiteTerm]]] = {}
    modules: dict[str, str] = {}
    for weight, patch in addends:
        for term in patch.terms:
            module = _exported_module(term)
            if modules.setdefault(term.site, module) != module:
                raise NotRepresentable(f"{term.site}: called {module} and {modules[term.site]} by two adapters")
            parts.setdefault(module, []).append((weight, term))
    tensors = [one for module in sorted(parts) for one in _exported_pair(module, parts[module])]
    ranks = {module: sum(_rank(term) for _, term in parts[module]) for module in sorted(parts)}
    config = _exported_config(ranks, base_name)
    config["fan_in_fan_out"] = any(
        term.options["layer"] == "conv1d" for module_parts in parts.values() for _, term in module_parts
    )
    task_types = {patch.facts.detail.get("task_type") for _, patch in addends}
    config["task_type"] = task_types.pop() if len(task_types) == 1 else None
    return Export("lora", WEIGHTS, tuple(tensors), {CONFIG: config})


def _exported_module(term: SiteTerm) -> str:
    if term.term != "lowrank" or "module" not in term.options or "d" in term.fields:
        raise NotRepresentable(f"{term.site}: a {term.term} term; a LoRA holds low-rank terms alone, so drop --as lora")
    return str(term.options["module"])


def _rank(term: SiteTerm) -> int:
    return term.fields["A"].shape[0]


def _exported_pair(module: str, parts: Sequence[tuple[float, SiteTerm]]) -> Iterator[ExportTensor]:
    r = sum(_rank(term) for _, term in parts)
    A, B = parts[0][1].fields["A"], parts[0][1].fields["B"]
    kind = "lora_embedding_{}" if parts[0][1].options["layer"] == "embedding" else "lora_{}.weight"
    key = PREFIX + module + "." + kind
    yield ExportTensor(key.format("A"), "F32", (r, *A.shape[1:]), "A", tuple(parts), axis=0, is_scaled=False)
    shape = (B.shape[0], r, *B.shape[2:])
    yield ExportTensor(key.format("B"), "F32", shape, "B", tuple(parts), axis=1, is_scaled=True)


def _exported_config(ranks: Mapping[str, int], base_name: str) -> dict[str, Any]:
    """alpha equals r everywhere, so scaling is 1. The rank most modules have is r, the others are patterns."""
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    others = {module: r for module, r in ranks.items() if r != common}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def rebase(folder: Folder, path: str, base: TrainingBase) -> Mapping[str, bytes]:
    """adapter_config.json of an adapter as it reads once it belongs to `base`, laid out as peft writes it."""
    file = join(path, CONFIG)
    config = read_json(folder, file) | {"base_model_name_or_path": base.name, "revision": base.revision}
    return {file: json.dumps(config, indent=2, sort_keys=True).encode()}


SPEC = PatchKind(
    name="lora",
    title="LoRA",
    summary="Low-rank factors A and B on some modules",
    source="arXiv:2106.09685, as peft saves it",
    recognise=recognise,
    read=read,
    export=export,
    rebase=rebase,
)
