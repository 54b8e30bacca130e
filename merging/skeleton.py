"""Adapters that peft itself folds: in a confined child, on a bare tree of the modules they change.

For tuners whose mathematics is not written out here. A kind names its configuration's keys and the values that each may
have; only those reach peft, rebuilt, and a key that nobody knows is refused where it asks for something. Weights go to
the child as safetensors, the base's values of the touched modules beside them, and what comes back is mapped. One run
serves all sites of a patch: the first value that is read starts it, and its outcome lives as long as the terms do.

A tuner whose change does not depend on what else was done to a site gives `dense` terms, W' - W. One that multiplies
what it finds gives `replace` terms with the option "affine": W' is right for the base's own values alone, so another
patch on that site needs a declared order in which this one is first.
Source: peft 0.21 `peft_model.py`, `utils/save_and_load.py`, `tuners/tuners_utils.py`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from adapterhub.merging import native, sandbox
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, SafetensorsWriter, TensorHandle, open_tensors
from adapterhub.merging.errors import InvalidPatch, NotFoldable
from adapterhub.merging.fingerprint import ALGORITHM, parameter_digests
from adapterhub.merging.patch import Patch, PatchKind, SiteTerm
from adapterhub.merging.peft_adapter import (
    BANK_PREFIX,
    CONFIG,
    DTYPES,
    PREFIX,
    Adapter,
    Module,
    Sites,
    Tuner,
    peft_kind,
)
from adapterhub.merging.sites import is_embedding, live_name

CHILD = "adapterhub.merging.peft_child"

GROUP_BYTES = 1 << 30
"""Float32 bytes of base weights that the child holds at once, for tuners whose modules do not share anything."""

LEAST_MEMORY_BYTES = 3 << 30
"""Memory of a child on top of what the weights take: torch, peft and their threads, measured 0.7 GiB."""

SECONDS = 3600
THREADS = 2

_IGNORED = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "progressbar",
    "revision",
    "target_modules",
    "task_type",
}
"""Keys that say nothing of how stored numbers become weights, or that are read elsewhere."""

Check = Callable[[Any, str], Any]
"""Gives the value of a configuration's key, or raises InvalidPatch; the second argument is how messages call it."""


# ---- values of a configuration -------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Check:
    """A whole number in [low, high]."""

    def check(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise InvalidPatch(f"{where} is {str(value)[:80]}; a whole number from {low} to {high} is expected")
        return value

    return check


def number(low: float, high: float) -> Check:
    """A number in [low, high]; whole ones stay whole, as peft tells them apart."""

    def check(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidPatch(f"{where} is {str(value)[:80]}; a number from {low:g} to {high:g} is expected")
        return value

    return check


def flag(value: Any, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise InvalidPatch(f"{where} is {str(value)[:80]}; true or false is expected")
    return value


def one_of(*allowed: str | bool) -> Check:
    """One of these values."""

    def check(value: Any, where: str) -> str | bool:
        for one in allowed:
            if type(value) is type(one) and value == one:
                return one
        raise InvalidPatch(f"{where} is {str(value)[:80]!r}; one of {', '.join(map(str, allowed))} is expected")

    return check


def optional(check: Check) -> Check:
    """null, or what another check allows."""
    return lambda value, where: None if value is None else check(value, where)


def by_module(check: Check) -> Check:
    """An object from module paths to values; a key that is an expression is refused, as peft would run it."""

    def checked(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > 100_000:
            raise InvalidPatch(f"{where} is a {type(value).__name__}; an object of at most 100000 modules is expected")
        for key in value:
            if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,512}", key):
                raise InvalidPatch(f"{where}: key {key[:80]!r} is no module's path; name the modules instead")
        return {key: check(one, f"{where}[{key!r}]") for key, one in value.items()}

    return checked


SEED = whole(-(1 << 62), 1 << 62)
RANK = whole(1, 65536)


# ---- kinds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folded:
    """How peft folds one of its tuners on a skeleton.

    settings: the keys of adapter_config.json that reach peft, and their checks. effect: "additive" where W' - W is the
    same whatever else acts on a site, else "affine". is_shared: whether modules share a bank or a size, so that all
    are folded at once. is_ordered: whether numbers are drawn module after module. has_bias: whether it changes biases.
    """

    peft_type: str
    settings: Mapping[str, Check]
    effect: Literal["additive", "affine"] = "additive"
    is_shared: bool = False
    is_ordered: bool = False
    has_bias: bool = False
    ignored: frozenset[str] = frozenset()

    def check(self, config: Mapping[str, Any], file: str) -> None:
        """Raises InvalidPatch for a value out of range, and for a key that is not known and asks for something."""
        self.values(config, file)
        for key, value in config.items():
            is_known = key in self.settings or key in _IGNORED or key in self.ignored or key.endswith("_dropout")
            if not is_known and value not in (None, False, "", [], {}):
                raise InvalidPatch(
                    f"{file}: {key[:80]!r} is {str(value)[:80]}; no such option of {self.peft_type} is known here"
                )

    def values(self, config: Mapping[str, Any], file: str) -> dict[str, Any]:
        """The configuration as it goes to peft: known keys alone, each checked; what is not there has its default."""
        return {key: check(config[key], f"{file}: {key}") for key, check in self.settings.items() if key in config}


def folded_kind(
    folded: Folded,
    *,
    name: str,
    title: str,
    summary: str,
    source: str,
    stem: str,
    banks: Sequence[str] = (),
    required: Sequence[str] = (),
    shown: Sequence[str] = (),
    dtypes: Mapping[str, frozenset[str]] | None = None,
    may_be_empty: frozenset[str] = frozenset(),
    contradictions: Callable[[Adapter, Module], Iterator[str]] = lambda adapter, module: iter(()),
    ranks: Callable[[Adapter, Module], int | None] = lambda adapter, module: None,
    why_not: Callable[[Mapping[str, Any]], str | None] = lambda config: None,
    is_mine: Callable[[Mapping[str, Any]], bool] = lambda config: True,
) -> PatchKind:
    """The patch kind of a tuner that peft folds. stem, banks, required and the rest are as `Tuner` says them."""
    tuner = Tuner(
        peft_type=folded.peft_type,
        stem=stem,
        banks=banks,
        required=[(one,) for one in required],
        shown=shown,
        dtypes=dtypes or {},
        may_be_empty=may_be_empty,
        effect=folded.effect,
        check=folded.check,
        contradictions=contradictions,
        ranks=ranks,
        why_not=why_not,
        is_mine=is_mine,
        together=lambda adapter, sites: terms(adapter, sites, folded),
    )
    return peft_kind(tuner, name=name, title=title, summary=summary, source=source, folds="peft")


# ---- terms -----------------------------------------------------------------------------------------------------------


def terms(adapter: Adapter, sites: Sites, folded: Folded) -> Iterator[SiteTerm]:
    """One term a changed parameter, its value computed when it is read; none without a base.

    Raises UnknownSite, NotFoldable, InvalidPatch.
    """
    if sites.base is None:
        return
    paths = [path for path, module in adapter.modules.items() if module.fields]
    if not paths and adapter.banks:
        paths = targeted(adapter, sites.base)
    if not paths:
        return
    fold = _Fold(adapter, folded, sites.base, [_place(path, adapter, sites) for path in paths])
    for module in fold.modules:
        for parameter, (site, handle) in module.parameters.items():
            if parameter == "bias" and not folded.has_bias:
                continue
            name = f"{module.path}.{parameter}"
            value = TensorHandle(name, "F32", handle.shape, lambda name=name: fold.value(name))  # type: ignore[misc]
            options = dict(module.options) if parameter == "weight" else {}
            if folded.effect == "affine":
                yield SiteTerm(site, "replace", {"value": value}, options=options | {"affine": True})
            else:
                yield SiteTerm(site, "dense", {"delta": value}, options=options | {"transpose": False})


@dataclass(frozen=True)
class _Placed:
    """One module of the skeleton. parameters: "weight" and "bias", each with its site and the base's tensor."""

    path: str
    layer: str
    live: str
    parameters: Mapping[str, tuple[str, TensorHandle]]
    options: Mapping[str, Any]


def _place(path: str, adapter: Adapter, sites: Sites) -> _Placed:
    assert sites.base is not None
    site, options = sites.place(f"{path}.weight")
    weight = sites.stored(site, options)
    if weight.dtype not in DTYPES:
        raise NotFoldable(f"{site}: the base holds it as {weight.dtype}; dequantise the base first")
    fields = adapter.modules[path].fields if path in adapter.modules else {}
    layer = _layer(path, weight.shape, any("embedding" in name for name in fields), sites)
    found = {"weight": (site, weight)}
    bias = sites.find(f"{path}.bias")
    if bias is not None and sites.base.tensors[bias].dtype in DTYPES:
        found["bias"] = (bias, sites.base.tensors[bias])
    live = live_name(site, sites.base.config.get("model_type")).removesuffix(".weight")
    return _Placed(path, layer, live, found, options | {"module": path, "layer": layer})


def _layer(path: str, shape: tuple[int, ...], is_table: bool, sites: Sites) -> str:
    if len(shape) not in (2, 3, 4, 5):
        raise NotFoldable(f"{path}: its weight is {shape}; peft adapts linear maps, embeddings and convolutions")
    if len(shape) > 2:
        return "conv"
    if is_table:
        return "embedding"
    return "conv1d" if sites.is_conv1d(path, (shape[0], shape[1])) else "linear"


def targeted(adapter: Adapter, base: Checkpoint) -> list[str]:
    """The modules of the base that the configuration names, for adapters whose file has no tensor of a module.

    Embeddings are not among them. Raises InvalidPatch for an expression that could take long.
    Source: peft `tuners/tuners_utils.py`, check_target_module_exists.
    """
    config = adapter.config
    model_type = base.config.get("model_type")
    names = [
        live_name(name, model_type).removesuffix(".weight")
        for name, handle in base.tensors.items()
        if name.endswith(".weight") and len(handle.shape) == 2 and not is_embedding_table(name)
    ]
    wanted, excluded = _matcher(config, "target_modules"), _matcher(config, "exclude_modules")
    kept = [name for name in names if wanted(name) and not excluded(name) and _is_in_layers(name, config)]
    return [name for name in kept if not adapter.saves_whole(f"{name}.weight")]


def is_embedding_table(name: str) -> bool:
    """Whether a parameter of two dimensions is a table of vectors and no linear map, by its name."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    return (is_embedding(name) and "lm_head" not in name) or "embed" in module or module in ("wte", "wpe", "shared")


def _matcher(config: Mapping[str, Any], key: str) -> Callable[[str], bool]:
    said = config.get(key) or []
    if isinstance(said, str):
        # A repeated group, or many repeats, can take exponential or high polynomial time on a hostile path.
        if len(said) > 512 or len(re.findall(r"[*+]|\{", said)) > 4 or re.search(r"\)[*+{]", said):
            raise InvalidPatch(f"{CONFIG}: {key} {said[:80]!r} is too complicated; name the modules instead")
        try:
            expression = re.compile(said)
        except re.error as error:
            raise InvalidPatch(f"{CONFIG}: {key} {said[:80]!r} is no regular expression: {error}") from error
        return lambda name: len(name) <= 256 and expression.fullmatch(name) is not None
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise InvalidPatch(f"{CONFIG}: {key} is {str(said)[:80]}; a list of names or an expression is expected")
    ends = {*said}
    return lambda name: any(name[start:] in ends for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))))


def _is_in_layers(name: str, config: Mapping[str, Any]) -> bool:
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == []:
        return True
    wanted = layers if isinstance(layers, list) else [layers]
    patterns = [pattern] if isinstance(pattern, str) else pattern or [r"[^.]*"]
    if not all(type(one) is int for one in wanted) or not all(
        isinstance(one, str) and re.fullmatch(r"\[\^\.\]\*|[A-Za-z0-9_.]{1,100}", one) for one in patterns
    ):
        raise InvalidPatch(f"{CONFIG}: layers_to_transform is {str(layers)[:80]}; layer numbers are expected")
    for one in patterns:
        found = re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", name)
        if found:
            return int(found[1]) in wanted
    return False


# ---- the child's run -------------------------------------------------------------------------------------------------


@dataclass
class _Fold:
    """One adapter on one base, folded by the child when the first value is asked for."""

    adapter: Adapter
    folded: Folded
    base: Checkpoint
    modules: Sequence[_Placed]
    _values: dict[str, memoryview] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def value(self, name: str) -> memoryview:
        """The bytes of one parameter's W' or W' - W, float32. Raises InvalidPatch, NotFoldable."""
        with self._lock:  # tensors are computed on several threads, and one run gives all of them
            if not self._values:
                self._run()
        return self._values[name]

    def _run(self) -> None:
        with TemporaryDirectory(prefix="adapterhub-fold-") as name:
            folder = Path(name)
            self._write_inputs(folder)
            limits = sandbox.Limits(self._memory_bytes(), SECONDS, THREADS)
            try:
                said = sandbox.call(CHILD, self._request(), folder, limits)
            except sandbox.ChildFailed as error:
                raise self._refusal(error) from error
            for file in said["files"]:
                found, _ = open_tensors(LocalFolder(folder), str(file))
                self._take(found)  # mapped: the bytes outlive the folder

    def _take(self, found: Mapping[str, TensorHandle]) -> None:
        shapes = {
            f"{module.path}.{parameter}": handle.shape
            for module in self.modules
            for parameter, (_, handle) in module.parameters.items()
        }
        for name, handle in found.items():
            if handle.dtype != "F32" or handle.shape != shapes.get(name):
                raise NotFoldable(f"{name}: peft's fold gives {handle.dtype} {handle.shape}, not {shapes.get(name)}")
            self._values[name] = handle.read()

    def _refusal(self, error: sandbox.ChildFailed) -> InvalidPatch | NotFoldable:
        message = f"{self.adapter.file}: peft does not fold this {self.folded.peft_type}: {error}"
        # peft's own words for numbers that do not fit together; all else may be this base or this machine
        is_patch = error.kind in ("ValueError", "RuntimeError", "KeyError", "IndexError", "TypeError", "AssertionError")
        return InvalidPatch(message) if is_patch else NotFoldable(message)

    def _write_inputs(self, folder: Path) -> None:
        weights = {
            f"{module.path}.{parameter}": handle
            for module in self.modules
            for parameter, (_, handle) in module.parameters.items()
        }
        _write(folder / "base.safetensors", weights)
        _write(folder / "adapter.safetensors", self._stored())

    def _stored(self) -> dict[str, TensorHandle]:
        """The tuner's own tensors by their keys in the adapter's file."""
        stored = {BANK_PREFIX + name: handle for name, handle in self.adapter.banks.items()}
        for path, module in self.adapter.modules.items():
            stored |= {f"{PREFIX}{path}.{name}": handle for name, handle in module.fields.items()}
        return stored

    def _request(self) -> dict[str, Any]:
        order = {"model": dict(self.base.config), "live": {one.path: one.live for one in self.modules}}
        return {
            "peft_type": self.folded.peft_type,
            "config": self.folded.values(self.adapter.config, CONFIG),
            "modules": [
                {"name": one.path, "layer": one.layer, "has_bias": "bias" in one.parameters} for one in self.modules
            ],
            "groups": self._groups(),
            "banks": [BANK_PREFIX + name for name in self.adapter.banks],
            "is_delta": self.folded.effect == "additive",
            "order": order if self.folded.is_ordered else None,
        }

    def _groups(self) -> list[list[str]]:
        """Names of modules that are in memory together: all of them where they share something."""
        groups: list[list[str]] = [[]]
        room = GROUP_BYTES
        for module in self.modules:
            size = 4 * sum(handle.numel for _, handle in module.parameters.values())
            if groups[-1] and size > room and not self.folded.is_shared:
                groups.append([])
                room = GROUP_BYTES
            groups[-1].append(module.path)
            room -= size
        return groups

    def _memory_bytes(self) -> int:
        """A group is there in float32, in float64 and as what lies between; inputs are mapped."""
        sizes = {one.path: 4 * sum(handle.numel for _, handle in one.parameters.values()) for one in self.modules}
        largest = max(sum(sizes[name] for name in group) for group in self._groups())
        stored = sum(handle.nbytes for handle in self._stored().values())
        return LEAST_MEMORY_BYTES + 12 * largest + 6 * stored


def _write(path: Path, tensors: Mapping[str, TensorHandle]) -> None:
    with SafetensorsWriter(path, {name: (one.dtype, one.shape) for name, one in tensors.items()}) as writer:
        for name, handle in tensors.items():
            writer.write(name, handle.read())
        writer.finish()


# ---- the outcome as a patch of its own -------------------------------------------------------------------------------


def write_derived(
    patch: Patch, base: Checkpoint, folder: Path, *, config: Mapping[str, Any], root: str | None = None
) -> str:
    """Write what peft made of an adapter on this base as a native patch, and give that patch's digest.

    patch: read with this base by a kind that peft folds. config: its adapter_config.json. root: the base's fingerprint,
    where it is known. The provenance names the adapter, peft's version and the configuration, and the base's touched
    parameters are there by digest: the same fold can be made again, and told from another.
    """
    sites: dict[str, list[native.StoredTerm]] = {}
    for term in patch.terms:
        fields = {
            name: (handle.dtype, np.frombuffer(handle.read(), "<f4").reshape(handle.shape))
            for name, handle in term.fields.items()
        }
        shape = next(iter(term.fields.values())).shape
        kept = {key: value for key, value in term.options.items() if key in ("affine", "tied_source", "tied_output")}
        sites.setdefault(term.site, []).append(native.StoredTerm(term.term, shape, fields, term.scale, kept))
    touched = {str(term.options.get("tied_source", term.site)) for term in patch.terms}
    fingerprint = {"algo": ALGORITHM, "params": parameter_digests(base, touched)} | ({"root": root} if root else {})
    provenance = {
        "source_format": f"peft {patch.facts.kind}",
        "peft_version": version("peft"),
        "peft_config": {key: value for key, value in sorted(config.items()) if key not in _IGNORED},
        "parents": [patch.digest],
        "exact": True,
    }
    named = {"repo_id": patch.facts.base.name, "revision": patch.facts.base.revision, "fingerprint": fingerprint}
    return native.write_patch(folder, sites=sites, base=named, provenance=provenance)
