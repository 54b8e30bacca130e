"""Run-time patches in the native format: `patch.json` with effect "runtime", and `patch.safetensors`.

The manifest's `runtime` object has `options`, one value or object for the whole patch, and `needs`, what a call must
give. Tensors of a module are named `<module path>::<field>`, those of the whole patch `@shared::<field>`. What a kind
expects is a `RuntimeFormat`. A trainer imports this file alone: numpy arrays in, a folder out. Never imports torch.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, Folder, SafetensorsWriter, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.encodings import Array
from adapterhub.merging.errors import InvalidPatch, UnknownSite
from adapterhub.merging.folders import canonical_json, join, json_digest
from adapterhub.merging.manifest import check_manifest, training_base, usage
from adapterhub.merging.native import FORMAT, FORMAT_VERSION, MANIFEST, WEIGHTS, read_manifest, rebase
from adapterhub.merging.patch import Facts, Patch, PatchKind
from adapterhub.merging.peft_adapter import DTYPES
from adapterhub.merging.sites import layers_of, targets_of

SHARED = "@shared"

_SAFETENSORS_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class RuntimePatch:
    """A run-time patch, read as far as headers go. modules: tensors by module path and field; shared: of the whole."""

    file: str
    options: Mapping[str, Any]
    needs: Sequence[str]
    modules: Mapping[str, Mapping[str, TensorHandle]]
    shared: Mapping[str, TensorHandle]


@dataclass(frozen=True)
class RuntimeFormat:
    """What the files of one kind hold.

    fields, shared: sizes of tensors by field, each a letter or a number; equal letters of one patch are equal sizes in
    shared ones, and of one module in its own. optional: fields that may be missing. options: checks of the manifest's
    options by name, which give None or what is expected instead; those in `defaults` may be missing. is_free: any
    tensors, for kinds that are described and not run. more: facts of the kind's own.
    """

    kind: str
    fields: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    shared: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    options: Mapping[str, Callable[[Any], str | None]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    is_free: bool = False
    more: Callable[[RuntimePatch], Mapping[str, Any]] = lambda patch: {}


# ---- checks of options -----------------------------------------------------------------------------------------------


def is_number(value: Any) -> str | None:
    """None for a finite number."""
    is_fine = not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value)
    return None if is_fine else "a number"


def is_flag(value: Any) -> str | None:
    """None for true and false."""
    return None if isinstance(value, bool) else "true or false"


def is_text(value: Any) -> str | None:
    """None for a text of at most 10000 characters."""
    return None if isinstance(value, str) and len(value) <= 10_000 else "a text"


def one_of(*choices: str) -> Callable[[Any], str | None]:
    """A check for one of these texts."""
    return lambda value: None if value in choices and isinstance(value, str) else " or ".join(choices)


def is_count(value: Any) -> str | None:
    """None for a whole number from 0 to a million."""
    return None if type(value) is int and 0 <= value <= 1_000_000 else "a whole number from 0 on"


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_runtime(
    folder: Path,
    kind: str,
    *,
    modules: Mapping[str, Mapping[str, Array]] | None = None,
    shared: Mapping[str, Array] | None = None,
    options: Mapping[str, Any] | None = None,
    needs: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    contract: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    parts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write a run-time patch into `folder` and give its digest. Arrays are float16, float32 or float64.

    contract, training, parts: as `manifest.py` has them. Equal arguments give equal bytes. Raises InvalidPatch for
    other dtypes, no array or a manifest that a reader would refuse, ValueError for NaN in options.
    """
    named = {f"{path}::{name}": array for path, fields in (modules or {}).items() for name, array in fields.items()}
    named |= {f"{SHARED}::{name}": array for name, array in (shared or {}).items()}
    wrong = [name for name, array in named.items() if str(array.dtype) not in _SAFETENSORS_NAMES]
    if wrong or not named:
        found = f"{wrong[0]} is {named[wrong[0]].dtype}" if wrong else "no arrays"
        raise InvalidPatch(f"{found}; a run-time patch holds float16, float32 or float64 arrays")
    more = {"contract": dict(contract or {}), "training": dict(training or {}), "parts": [dict(p) for p in parts]}
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: (_SAFETENSORS_NAMES[str(array.dtype)], array.shape) for name, array in sorted(named.items())}
    with SafetensorsWriter(folder / WEIGHTS, shapes, {"format": "pt", FORMAT: str(FORMAT_VERSION)}) as writer:
        for name in shapes:
            writer.write(name, np.ascontiguousarray(named[name]).tobytes())
        size_bytes, digest = writer.finish()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "effect": "runtime",
        "foldable": False,
        "base": dict(base or {}),
        "runtime": {"options": dict(options or {}), "needs": list(needs)},
        "provenance": dict(provenance or {}),
        "files": {WEIGHTS: {"size": size_bytes, "sha256": digest.removeprefix("sha256:")}},
        **{name: value for name, value in more.items() if value},
    }
    check_manifest(manifest)
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return json_digest(manifest)


# ---- reading ---------------------------------------------------------------------------------------------------------


def runtime_kind(wanted: RuntimeFormat, *, title: str, summary: str, source: str) -> PatchKind:
    """The patch kind of a format: recognised, checked, read and rebased alike for all of them."""
    return PatchKind(
        name=wanted.kind,
        title=title,
        summary=summary,
        source=source,
        recognise=lambda folder, path: recognise(folder, path, wanted),
        read=lambda folder, path, base: read(folder, path, base, wanted),
        rebase=rebase,
        folds="no",
    )


def recognise(folder: Folder, path: str, wanted: RuntimeFormat) -> Facts | None:
    """Facts of the run-time patch in `path`, if its manifest says this kind and effect."""
    name = join(path, MANIFEST)
    if name not in folder.names():
        return None
    try:
        manifest = read_manifest(folder, path)
    except InvalidPatch:
        return None
    if manifest.get("kind") != wanted.kind or manifest.get("effect") != "runtime":
        return None
    facts = Facts(
        kind=wanted.kind,
        reason=f"{name} says format {FORMAT!r}, kind {wanted.kind!r}, effect 'runtime'",
        path=path,
        files=(name, join(path, WEIGHTS)),
        effect="runtime",
    )
    try:
        patch = read_runtime(folder, path, wanted)
        facts = _described(facts, folder, manifest, patch, wanted)
    except InvalidPatch as error:
        return Facts(facts.kind, facts.reason, path, facts.files, "runtime", problems=(str(error),))
    return facts


def _described(
    facts: Facts, folder: Folder, manifest: Mapping[str, Any], patch: RuntimePatch, wanted: RuntimeFormat
) -> Facts:
    handles = [*patch.shared.values(), *(one for fields in patch.modules.values() for one in fields.values())]
    dtypes: Counter[str] = Counter()
    for handle in handles:
        dtypes[handle.dtype] += handle.numel
    return Facts(
        kind=facts.kind,
        reason=facts.reason,
        path=facts.path,
        files=facts.files,
        effect="runtime",
        base=training_base(manifest),
        targets=targets_of(patch.modules),
        layers=layers_of(patch.modules),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(facts.files[1]),
        detail={**patch.options, **wanted.more(patch), "needs": list(patch.needs)},
        **usage(manifest),
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidPatch(f"{MANIFEST}: {where} is a {type(value).__name__}; an object is expected")
    return value or {}


def read_runtime(folder: Folder, path: str, wanted: RuntimeFormat) -> RuntimePatch:
    """The run-time patch in `path`, options and shapes checked. Raises InvalidPatch or BrokenContainer."""
    manifest, file = read_manifest(folder, path), join(path, WEIGHTS)
    check_manifest(manifest)
    if manifest.get("kind") != wanted.kind or manifest.get("effect") != "runtime":
        raise InvalidPatch(f"{join(path, MANIFEST)}: not a run-time patch of kind {wanted.kind!r}")
    if file not in folder.names():
        raise InvalidPatch(f"{file}: missing; {MANIFEST} alone is no patch")
    check_manifest(manifest)
    declared = _object(_object(manifest.get("files"), "files").get(WEIGHTS), f"files.{WEIGHTS}").get("sha256")
    if declared != folder.digest(file).removeprefix("sha256:"):
        raise InvalidPatch(f"{file}: its sha256 is {folder.digest(file)}, {MANIFEST} says {declared}")
    tensors, _ = open_tensors(folder, file, limit_bytes=PATCH_HEADER_BYTES)
    runtime = _object(manifest.get("runtime"), "runtime")
    needs = runtime.get("needs") or []
    if not isinstance(needs, list) or not all(isinstance(one, str) for one in needs):
        raise InvalidPatch(f"{MANIFEST}: runtime.needs is {str(needs)[:80]}; a list of texts is expected")
    options = _options(_object(runtime.get("options"), "runtime.options"), wanted)
    modules: dict[str, dict[str, TensorHandle]] = {}
    shared: dict[str, TensorHandle] = {}
    for name, handle in tensors.items():
        place, separator, leaf = name.partition("::")
        if not separator and not wanted.is_free:
            raise InvalidPatch(f"{file}: tensor {name[:200]} is not called <module>::<field>")
        (shared if place == SHARED or not separator else modules.setdefault(place, {}))[leaf or name] = handle
    patch = RuntimePatch(file, options, tuple(needs), dict(sorted(modules.items())), shared)
    problem = next(_problems(patch, wanted), None)
    if problem:
        raise InvalidPatch(f"{file}: {problem}")
    return patch


def _options(found: Mapping[str, Any], wanted: RuntimeFormat) -> Mapping[str, Any]:
    given = {**wanted.defaults, **found}
    for name in given:
        if name not in wanted.options and not wanted.is_free:
            raise InvalidPatch(f"{MANIFEST}: option {name[:80]!r} is none of {', '.join(wanted.options) or 'none'}")
    for name, check in wanted.options.items():
        expected = check(given.get(name))
        if expected is not None:
            raise InvalidPatch(f"{MANIFEST}: option {name} is {str(given.get(name))[:80]!r}; {expected} is expected")
    return given


def _problems(patch: RuntimePatch, wanted: RuntimeFormat) -> Iterator[str]:
    if wanted.is_free:
        return
    if wanted.fields and not patch.modules:
        yield "holds no tensor of a module"
    sizes: dict[str, int] = {}
    yield from _misfits("", patch.shared, wanted.shared, wanted.optional, sizes)
    for path, fields in patch.modules.items():
        yield from _misfits(f"{path}: ", fields, wanted.fields, wanted.optional, dict(sizes))


def _misfits(
    where: str,
    found: Mapping[str, TensorHandle],
    wanted: Mapping[str, Sequence[str | int]],
    optional: frozenset[str],
    sizes: dict[str, int],
) -> Iterator[str]:
    for name in sorted(found.keys() - wanted.keys()):
        yield f"{where}{name[:80]} is none of {', '.join(wanted) or 'no fields'}"
    for name, letters in wanted.items():
        handle = found.get(name)
        if handle is None:
            if name not in optional:
                yield f"{where}has no {name}"
            continue
        if handle.dtype not in DTYPES:
            yield f"{where}{name} has dtype {handle.dtype}; a float of 16 bits or more is expected"
        if len(handle.shape) != len(letters) or 0 in handle.shape:
            yield f"{where}{name} is {handle.shape}; ({', '.join(map(str, letters))}) is expected"
            continue
        for letter, size in zip(letters, handle.shape, strict=True):
            known = letter if isinstance(letter, int) else sizes.setdefault(letter, size)
            if known != size:
                yield f"{where}{name} is {handle.shape}; {letter} is {known} elsewhere in it"


def read(folder: Folder, path: str, base: Checkpoint | None, wanted: RuntimeFormat) -> Patch:
    """The patch, without terms; with a base, its modules must be there. Raises InvalidPatch, UnknownSite."""
    facts, patch = recognise(folder, path, wanted), read_runtime(folder, path, wanted)
    assert facts is not None
    if base is not None and not wanted.is_free:
        for module in patch.modules:
            if not any(name.startswith(module + ".") or f".{module}." in name for name in base.tensors):
                raise UnknownSite(module, base.name)
    return Patch(facts, json_digest(read_manifest(folder, path)), ())
