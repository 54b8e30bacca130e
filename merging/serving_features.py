"""The features of a patch that decide whether an engine outside serves it: found once, whatever the engine.

Read are its configuration, the names and shapes of its tensors and, where it is at hand, its base. What each comes to
is the engine's to say (`serving_rules.py`), and what follows of it `serveability.py`'s. Never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adapterhub.merging import fused, patches
from adapterhub.merging.checkpoint import TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.errors import InvalidPatch, NotFoldable, NotRepresentable, UnknownSite
from adapterhub.merging.gguf import open_gguf
from adapterhub.merging.lora_variants import changes_base, held_parameters
from adapterhub.merging.lowrank_export import pairs_of
from adapterhub.merging.patches.lora import TUNER
from adapterhub.merging.patterns import matching, read_pattern
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, open_adapter, read_config
from adapterhub.merging.serving_rules import Modules, ServingEngine
from adapterhub.merging.sites import is_embedding, live_name, naming
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint, Folder
    from adapterhub.merging.patch import Facts, Patch, SiteTerm

EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")
"""One expert's own module: its layer's experts, its number, the projection."""

_HEADS = ("score", "classifier")
_FUSED = ("qkv_proj", "gate_up_proj", "c_attn", "query_key_value")
_PARTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_OF_BASE = "left out: it is the base's own value"
_ASK = "; name the base with --base"


@dataclass(frozen=True)
class Finding:
    """One feature of one tensor. rewrite: what it becomes, "" where it stays. detail: instead of the rule's reason.

    is_idle: whether the tensor says what the base says anyway, so that an engine may ignore it.
    """

    tensor: str
    feature: str
    rewrite: str = ""
    detail: str = ""
    is_idle: bool = False


@dataclass
class Looked:
    """A patch with its features found. patch: its terms, as the base calls their sites; None where it has none."""

    facts: Facts
    engine: ServingEngine
    version: str
    base: Checkpoint | None
    tensors: Sequence[str]
    patch: Patch | None = None
    refusal: str = ""
    layout: str = ""
    findings: list[Finding] = field(default_factory=list)
    idle: set[str] = field(default_factory=set)
    """Sites at which the patch puts what the base has already."""

    def add(
        self, names: Sequence[str], feature: str, rewrite: str = "", detail: str = "", is_idle: bool = False
    ) -> None:
        self.findings += [Finding(name, feature, rewrite, detail, is_idle) for name in names]

    @property
    def kept(self) -> tuple[SiteTerm, ...]:
        """The terms that are written."""
        found = self.patch.terms if self.patch else ()
        return tuple(one for one in found if one.site not in self.idle or one.term != "replace")


# ---- looking ---------------------------------------------------------------------------------------------------------


def look(folder: Folder, path: str, engine: ServingEngine, version: str, base: Checkpoint | None) -> Looked:
    """The patch in `path` of a folder, and its features. base: where it is at hand, its names and shapes are checked.

    Raises InvalidPatch where no patch lies there or it contradicts itself; UnknownSite and ShapeMismatch for a base
    that it does not fit; BrokenContainer.
    """
    facts = next((one for one in patches.inspect(folder) if one.path == path), None)
    if facts is None or facts.kind not in patches.kinds():
        raise InvalidPatch(
            facts.problems[0] if facts else f"{path or 'the root folder'}: no patch of a known kind lies here"
        )
    if facts.kind == "model":
        raise InvalidPatch(f"{facts.reason}: it is a whole model, which every engine serves as such")
    found = Looked(facts, engine, version, base, _names(folder, facts))
    _read(found, folder)
    if facts.kind == "lora":
        config = read_config(folder, path) or {}
        _look_at_lora(found, open_adapter(folder, path, config, TUNER))
    else:
        _look_at_kind(found)
    if engine.answers is not None and facts.kind != engine.form:
        _look_at_form(found)
    return found


def _names(folder: Folder, facts: Facts) -> Sequence[str]:
    """The names of the patch's tensors; of a file that is not opened, its own."""
    names: list[str] = []
    for file in facts.files:
        if file.endswith(".safetensors"):
            names += open_tensors(folder, file, limit_bytes=PATCH_HEADER_BYTES)[0]
        elif file.endswith(".gguf"):
            names += open_gguf(folder, file).tensors
        elif not file.endswith(".json"):
            names.append(file)
    return sorted(names)


def _read(found: Looked, folder: Folder) -> None:
    """Its terms, in the layout of the base. Raises as `look`."""
    path = found.facts.path
    try:
        found.patch = patches.read(folder, path, base=found.base)
    except NotFoldable as error:
        found.refusal = str(error)
    except UnknownSite:
        if found.base is None:
            raise
        bare = patches.read(folder, path, base=None)
        relaid = _in_layout(bare, found.base)
        if relaid is None:
            raise
        found.layout, found.patch = relaid


def _in_layout(bare: Patch, base: Checkpoint) -> tuple[str, Patch] | None:
    """How the patch was laid out and the patch as the base is; None where neither way makes it the base's."""
    ways: Sequence[tuple[str, Callable[[], Patch]]] = (
        ("split", lambda: fused.relaid(bare, "fused", base)),
        ("fused", lambda: fused.parted(bare, base)),
    )
    for was, make in ways:
        try:
            made = make()
            names = naming([one.site for one in made.terms], base)
            return was, replace(made, terms=tuple(replace(one, site=names.site(one.site)) for one in made.terms))
        except (NotRepresentable, UnknownSite, InvalidPatch):
            continue
    return None


def _look_at_kind(found: Looked) -> None:
    """A patch that is no LoRA of peft's: what acts at run time, and what is written as a LoRA."""
    kind = patches.kinds()[found.facts.kind]
    if found.facts.kind == found.engine.form:
        return
    if found.facts.effect == "runtime":
        at_run_time = "acts at run time and has no form as weights; `adapterhub serve` runs it"
        feature = "activated" if found.facts.kind == "alora" else "run_time"
        found.add(found.tensors, feature, detail=f"a {found.facts.kind} {at_run_time}")
        return
    bad = {name: why for module, why in _not_factors(found).items() for name in _tensors_of(found, module)}
    whole = found.refusal or ("" if found.kept else "changes no parameter that is known" + ("" if found.base else _ASK))
    for name in found.tensors:
        why = whole or bad.get(name, "") or ("" if kind.has_factors else next(iter(bad.values()), ""))
        found.add([name], "kind", "" if why else "written as a LoRA, as peft saves it", why)
    if not whole and not bad:
        pairs = pairs_of([(1.0, replace(found.patch, terms=found.kept))], found.base) if found.patch else []
        of_module = {one.module: _tensors_of(found, one.module) for one in pairs}
        _look_at_modules(found, of_module, {one.module: (one.layer, one.r) for one in pairs})
        _look_at_groups(found, of_module)
        _look_at_ranks(found, of_module)


def _tensors_of(found: Looked, module: str) -> Sequence[str]:
    """The tensors whose names have a module's; all of them in formats that name modules otherwise."""
    return [name for name in found.tensors if module in name] or found.tensors


def _not_factors(found: Looked) -> Mapping[str, str]:
    """Why a module's term has no exact low-rank form, by module or site."""
    bad = {}
    for term in found.kept:
        try:
            assert found.patch is not None  # it has terms
            pairs_of([(1.0, replace(found.patch, terms=(term,)))], found.base)
        except NotRepresentable as error:
            bad[str(term.options.get("module", term.site))] = str(error)
    return bad


def _look_at_form(found: Looked) -> None:
    """What has no place in the engine's own file format."""
    assert found.engine.answers is not None
    kept = replace(found.patch, terms=found.kept) if found.patch else None
    answers = found.engine.answers(kept, found.base) if kept else {}
    why_not = {
        name: answers[one.site]
        for one in found.kept
        if one.site in answers
        for name in _tensors_of(found, str(one.options.get("module", one.site)))
    }
    lost = {one.tensor for one in found.findings if not one.rewrite}
    for name in found.tensors:
        if name not in lost or name in why_not:
            rewrite = "" if name in why_not else f"written as {found.engine.form.upper()}"
            found.add([name], "kind", rewrite, why_not.get(name, ""))


# ---- a LoRA of peft's ------------------------------------------------------------------------------------------------


def _look_at_lora(found: Looked, adapter: Adapter) -> None:
    for module in adapter.modules.values():
        _look_at_module(found, adapter, module)
        _look_at_copies(found, adapter, module)
    for name, handle in adapter.whole.items():
        _look_at_whole(found, adapter, name, handle)
    of_module = {path: _factors(module) for path, module in adapter.modules.items() if _factors(module)}
    _look_at_settings(found, adapter, [name for names in of_module.values() for name in names])
    _look_at_names(found, adapter, of_module)
    _look_at_groups(found, of_module)
    _look_at_ranks(found, of_module)


def _factors(module: Module) -> list[str]:
    """The names of a module's tensors that make its delta."""
    return [one.name for name, one in module.fields.items() if name != "bias" and not _is_of_training(name)]


def _is_of_training(field: str) -> bool:
    return field.startswith(("velora", "monteclora"))


def _look_at_module(found: Looked, adapter: Adapter, module: Module) -> None:
    """What configuration and tensors say of one module's delta."""
    config, names = adapter.config, _factors(module)
    if not names:
        return
    if config.get("use_dora"):
        whole_rank = "D·(W + s·B·A) - W with D its magnitudes by the norms of rows has the rank of W, and is no LoRA"
        found.add(names, "dora", detail=f"{whole_rank}; merge it into a model, or convert it to dense")
    if "bias" in module.fields:
        constant = "a bias of lora_B is no product of factors; add it to the base's own bias by a merge"
        found.add([module.fields["bias"].name], "lora_bias", detail=constant)
    found.add(
        [one.name for name, one in module.fields.items() if _is_of_training(name)], "training", "left out", is_idle=True
    )
    r = TUNER.ranks(adapter, module) or 0
    if config.get("use_rslora") and r > 1:
        found.add(names, "rslora", "alpha / sqrt(r) is written as lora_alpha / r")
    if r != config.get("r", 8):
        found.add(names, "rank_pattern", "padded with zeros to one rank")
    said = read_pattern(config.get("alpha_pattern") or {}, CONFIG)
    if matching(said, module.path, float(config.get("lora_alpha", 8))) != float(config.get("lora_alpha", 8)):
        found.add(names, "alpha_pattern", "its scale goes into B")
    if config.get("layer_replication"):
        longer = "the layers of its base are repeated; merge it, and serve the longer model"
        found.add(names, "replication", detail=longer)
    _look_at_stored_form(found, adapter, module, names)


def _look_at_stored_form(found: Looked, adapter: Adapter, module: Module, names: Sequence[str]) -> None:
    """What of a module's factors is not written out in the file."""
    config = adapter.config
    init = config.get("init_lora_weights")
    if str(init).lower() == "lora_ga":
        found.add(names, "base_gradients", detail=found.refusal)
    mutating = str(init).lower().startswith(("pissa", "olora", "corda", "loftq"))
    if changes_base(config) or (isinstance(init, str) and mutating):
        is_known = found.base is not None and not found.refusal
        why = found.refusal or (
            f"init_lora_weights is {init!r}, and what it took out of the base has to be read there" + _ASK
        )
        rewrite = "what training took out of the base is written as further ranks" if is_known else ""
        found.add(names, "base_changed", rewrite, "" if is_known else why)
    blocks = config.get("use_bdlora") or {}
    ends = [*(blocks.get("target_modules_bd_a") or []), *(blocks.get("target_modules_bd_b") or [])]
    if any(one in module.path for one in ends):
        found.add(names, "blocks", "its blocks are written out on their diagonal")
    if config.get("use_qalora"):
        found.add(names, "groups", "A is written out for every input")
    if isinstance(config.get("target_modules"), str) and config["target_modules"] not in ("all", "all-linear"):
        found.add(names, "regex", "target_modules names its modules one by one")
    if held_parameters(adapter, module.path):
        stem = module.fields["A"].name + "["
        parts = [one for one in found.kept if one.term == "lowrank" and one.fields["A"].name.startswith(stem)]
        why = (
            "its base stores the experts stacked, and names none of them"
            if found.base
            else "which parameter it is says the base" + _ASK
        )
        found.add(
            names, "stacked_experts", "one adapter for each expert's own weights" if parts else "", "" if parts else why
        )


def _look_at_copies(found: Looked, adapter: Adapter, module: Module) -> None:
    """Copies of the base's own values, and rows put in their place."""
    for kind, handle in module.copies.items():
        _look_at_value(found, f"{module.path}.{kind}", handle, "bias" if kind == "bias" else "copy")
    if module.tokens is not None:
        rows = "rows that replace the base's are no LoRA; merge them into a model"
        found.add([module.tokens.name], "rows", detail=rows)


def _look_at_whole(found: Looked, adapter: Adapter, name: str, handle: TensorHandle) -> None:
    if adapter.saves_whole(name):
        is_head = any(part in _HEADS for part in name.split("."))
        in_layer = re.search(r"layers\.\d+\.", name) is not None
        _look_at_value(found, name, handle, "head" if is_head else "saved_in_layer" if in_layer else "saved")
    else:
        _look_at_value(found, name, handle, "whole_copy" if is_embedding(name) else "bias")


def _look_at_value(found: Looked, name: str, handle: TensorHandle, feature: str) -> None:
    """A value that stands in place of the base's: one that is the base's own can be left out."""
    base = found.base
    site = naming([name], base).find(name) if base is not None else None
    if base is not None and site is not None:
        stored = base.tensors[site]
        if (stored.dtype, stored.shape) == (handle.dtype, handle.shape) and stored.read() == handle.read():
            found.idle.add(site)
            found.add([handle.name], feature, _OF_BASE, is_idle=True)
            return
    unknown = f"whether it is the base's own value says the base{_ASK}" if base is None else ""
    whole = "a value in place of the base's is no LoRA; merge it into a model"
    found.add([handle.name], feature, detail=unknown or whole)


def _look_at_settings(found: Looked, adapter: Adapter, names: Sequence[str]) -> None:
    """Settings of tensors that the file does not hold: an engine may refuse what they say."""
    config, has = adapter.config, {one.feature for one in found.findings}
    if config.get("bias", "none") != "none" and "bias" not in has:
        found.add(names, "unused", "bias is written as none, as no bias is stored")
    if config.get("lora_bias") and "lora_bias" not in has:
        found.add(names, "unused", "lora_bias is left out, as no bias is stored")
    if adapter.saved_modules and not {"saved", "saved_in_layer", "head"} & has:
        is_head = all(one in _HEADS for one in adapter.saved_modules)
        found.add(names, "head" if is_head else "unused", "modules_to_save is left out, as no module is stored")


def _look_at_names(found: Looked, adapter: Adapter, of_module: Mapping[str, Sequence[str]]) -> None:
    """Modules that the base calls otherwise, or fuses otherwise; and what the engine alone says of them."""
    called = {path: new for path, new in renamed(found).items() if path in of_module and path != new}
    for path, new in called.items():
        found.add(of_module[path], "prefix", f"called {new}, as the base calls it")
    parts = {"fused": _FUSED, "split": _PARTS}.get(found.layout, ())
    for path, names in of_module.items():
        if path.rpartition(".")[2] in parts:
            rewrite = "cut into its parts" if found.layout == "fused" else "joined with its sisters, on a diagonal"
            found.add(names, found.layout, rewrite)
    modules = {path: adapter.modules[path] for path in of_module}
    layers = {path: (_layer(one), TUNER.ranks(adapter, one) or 0) for path, one in modules.items()}
    _look_at_modules(found, of_module, layers)


def _look_at_modules(
    found: Looked, of_module: Mapping[str, Sequence[str]], layers: Mapping[str, tuple[str, int]]
) -> None:
    """What the engine alone says of modules: their layer and rank by path."""
    told = {(one.tensor, one.feature) for one in found.findings}
    for path, feature, rewrite in found.engine.looks(Modules(layers, found.base), found.version):
        found.add([name for name in of_module[path] if (name, feature) not in told], feature, rewrite)


def _layer(module: Module) -> str:
    if "embedding_A" in module.fields:
        return "embedding"
    A = module.fields.get("A")
    return "conv" if A is not None and len(A.shape) > 2 else "linear"


def renamed(found: Looked) -> Mapping[str, str]:
    """What the base calls the modules of the patch, by the names that the patch has for them."""
    if found.base is None or found.layout:
        return {}
    kind = found.base.config.get("model_type")
    called = [one for one in found.kept if "module" in one.options]
    return {str(one.options["module"]): live_name(one.site.removesuffix(".weight"), kind) for one in called}


def _look_at_groups(found: Looked, of_module: Mapping[str, Sequence[str]]) -> None:
    """Modules whose sisters the engine asks for, and the patch does not have."""
    for feature, members in groups(found.engine, of_module, found.base):
        missing = [one for one in members if one not in of_module]
        here = [one for one in members if one in of_module]
        if missing:
            rewrite = "zeros for " + ", ".join(sorted({one.rpartition(".")[2] for one in missing}))
            for path in here:
                found.add(
                    of_module[path], feature, rewrite if found.base else "", "" if found.base else _sizes(missing)
                )


def _sizes(missing: Sequence[str]) -> str:
    return f"the sizes of {missing[0]} says the base{_ASK}"


def groups(
    engine: ServingEngine, here: Mapping[str, Any], base: Checkpoint | None
) -> Iterator[tuple[str, Sequence[str]]]:
    """What the engine takes whole, of groups of which one module is here: feature and members that the base has."""
    for parent in sorted({path.rpartition(".")[0] for path in here}):
        for group in engine.whole:
            members = [f"{parent}.{one}" for one in group]
            members = [one for one in members if one in here or one.rpartition(".")[2] not in engine.spare]
            if any(one in here for one in members):
                yield ("some_experts" if EXPERT.fullmatch(members[0]) else "lone"), members
    if engine.whole_experts and base is not None:
        for owner in sorted({found[1] for path in here if (found := EXPERT.fullmatch(path))}):
            weights = [one.removesuffix(".weight") for one in base.tensors if one.endswith(".weight")]
            yield "some_experts", [one for one in weights if (match := EXPERT.fullmatch(one)) and match[1] == owner]


def _look_at_ranks(found: Looked, of_module: Mapping[str, Sequence[str]]) -> None:
    if not found.engine.ranks:
        return
    for module, r in ranks(found).items():
        if r > found.engine.ranks[-1]:
            nearest = (
                f"`adapterhub merge run ... --as lora:r={found.engine.ranks[-1]}` writes the nearest of fewer ranks"
            )
            found.add(
                of_module.get(module, found.tensors),
                "rank",
                detail=f"its rank is {r}, and {found.engine.title}'s largest is {found.engine.ranks[-1]}; {nearest}",
            )


def ranks(found: Looked) -> Mapping[str, int]:
    """The rank that each module is written with."""
    plain = tuple(one for one in found.kept if one.term == "lowrank" or terms()[one.term].factors is not None)
    if found.patch is None or not plain:
        return {}
    try:
        return {one.module: one.r for one in pairs_of([(1.0, replace(found.patch, terms=plain))], found.base)}
    except NotRepresentable:
        return {}
