"""The native patch format: `patch.json` and `patch.safetensors` in one folder, read and written without the service.

A trainer imports this file alone: numpy arrays in, a folder out. `patch.json` says what each term is; tensors are named
`<parameter>::<term>.<field>`. Parameters carry the base's own names. Packed bits are row-major, least significant bit
first, the last byte filled with zeros. Never imports torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, Folder, SafetensorsWriter, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.encodings import (
    DECODERS,
    NUMPY,
    Array,
    as_array,
    decode_indices,
    encode_indices,
    pack_bits,
    unpack_bits,
)
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch
from adapterhub.merging.folders import canonical_json, join, json_digest, read_json
from adapterhub.merging.patch import Facts, Patch, SiteTerm, TrainingBase
from adapterhub.merging.sites import layers_of, naming, targets_of

MANIFEST = "patch.json"
WEIGHTS = "patch.safetensors"
FORMAT = "adapterhub.patch"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class StoredTerm:
    """One term on one parameter, its tensors in memory: what `sparse`, `select` and their like make for `write_patch`.

    kind: key of the term registry. fields: (safetensors dtype, array) by field name; BF16 arrays are bits as uint16.
    """

    kind: str
    shape: tuple[int, ...]
    fields: Mapping[str, tuple[str, Array]]
    scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


def sparse(delta: Array, *, dtype: str = "F32", scale: float = 1.0, index: str | None = None) -> StoredTerm:
    """A sparse term from a delta that is zero almost everywhere; explicit zeros are dropped.

    delta: float, the shape of the parameter. dtype: F16, F32 or F64 for the values. index: "flat", "csr16" or "bitmap";
    None takes the smallest.
    """
    flat = np.ascontiguousarray(delta).reshape(-1)
    indices = np.flatnonzero(flat)
    name, fields = encode_indices(indices, delta.shape, index)
    values = flat[indices].astype(NUMPY[dtype])
    stats = {"nnz": len(indices), "fro": float(np.linalg.norm(values.astype(np.float64)) * abs(scale))}
    return StoredTerm("sparse", delta.shape, {"val": (dtype, values), **fields}, scale, {"index": name}, stats)


def select(selected: Array, delta: Array, *, dtype: str = "F32", scale: float = 1.0) -> StoredTerm:
    """A mask term that adds `delta` where `selected` (bool) is true; both have the shape of the parameter."""
    if selected.shape != delta.shape:
        raise InvalidPatch(f"mask of shape {selected.shape} for a delta of shape {delta.shape}")
    bits = pack_bits(selected)
    stats = {"nnz": int(selected.sum()), "fro": float(np.linalg.norm(delta[selected].astype(np.float64)) * abs(scale))}
    fields = {"bits": ("U8", bits), "delta": (dtype, np.ascontiguousarray(delta).astype(NUMPY[dtype]))}
    return StoredTerm("mask", delta.shape, fields, scale, {"mode": "select"}, stats)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_patch(
    folder: Path,
    *,
    sites: Mapping[str, Sequence[StoredTerm] | StoredTerm],
    base: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Write one patch into `folder` and give its digest: sha256 of the canonical patch.json, files' digests inside.

    sites: terms by the base's parameter name. base: what is known of it, such as {"repo_id", "revision", "model_type",
    "fingerprint": {"root": "sha256:<hex>", "params": {...}}}. Equal arguments give equal bytes. Raises InvalidPatch for
    a patch without terms, and ValueError for NaN in a number of the manifest.
    """
    terms = {site: (one,) if isinstance(one, StoredTerm) else tuple(one) for site, one in sorted(sites.items())}
    kinds = sorted({term.kind for site_terms in terms.values() for term in site_terms})
    if not kinds:
        raise InvalidPatch("a patch needs at least one term")
    folder.mkdir(parents=True, exist_ok=True)
    size_bytes, digest = _write_weights(folder / WEIGHTS, terms)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kinds[0] if len(kinds) == 1 else "sum",
        "effect": "additive",
        "foldable": True,
        "base": dict(base),
        "sites": {site: _site_entry(site_terms) for site, site_terms in terms.items()},
        "provenance": dict(provenance or {}),
        "files": {WEIGHTS: {"size": size_bytes, "sha256": digest.removeprefix("sha256:")}},
    }
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return json_digest(manifest)


def _write_weights(path: Path, terms: Mapping[str, Sequence[StoredTerm]]) -> tuple[int, str]:
    tensors = {
        f"{site}::t{number}.{name}": stored
        for site, site_terms in terms.items()
        for number, term in enumerate(site_terms)
        for name, stored in term.fields.items()
    }
    shapes = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    with SafetensorsWriter(path, shapes, {"format": "pt", FORMAT: str(FORMAT_VERSION)}) as writer:
        for name, (_, array) in tensors.items():
            writer.write(name, np.ascontiguousarray(array).tobytes())
        return writer.finish()


def _site_entry(terms: Sequence[StoredTerm]) -> dict[str, Any]:
    shapes = {term.shape for term in terms}
    if len(shapes) != 1:
        raise InvalidPatch(f"terms of one parameter have shapes {sorted(shapes)}")
    entries = [
        {"id": f"t{number}", "kind": term.kind, "scale": float(term.scale), "stats": dict(term.stats), **term.options}
        for number, term in enumerate(terms)
    ]
    return {"shape": list(terms[0].shape), "terms": entries}


def rebase(folder: Folder, path: str, base: TrainingBase) -> Mapping[str, bytes]:
    """patch.json of a patch as it reads once the patch belongs to `base`; its weights stay as they are."""
    manifest = read_manifest(folder, path)
    fingerprint = {"root": base.fingerprint, "params": dict(base.parameters)} if base.fingerprint else None
    named = {"repo_id": base.name, "revision": base.revision, "fingerprint": fingerprint}
    kept = {key: value for key, value in (manifest.get("base") or {}).items() if key not in named}
    manifest["base"] = kept | {key: value for key, value in named.items() if value is not None}
    return {join(path, MANIFEST): canonical_json(manifest)}


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Folder, path: str = "") -> dict[str, Any]:
    """patch.json in `path` of a folder. Raises InvalidPatch where it is not one of this format and version."""
    name = join(path, MANIFEST)
    manifest = read_json(folder, name)
    if manifest.get("format") != FORMAT or manifest.get("format_version") != FORMAT_VERSION:
        found = f"{manifest.get('format')!r} version {manifest.get('format_version')!r}"
        raise InvalidPatch(f"{name}: format {found}; {FORMAT!r} version {FORMAT_VERSION} is read here")
    return manifest


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raises InvalidPatch unless everything that is read of a manifest has its type."""
    base = _object(manifest.get("base"), "base")
    fingerprint = _object(base.get("fingerprint"), "base.fingerprint")
    params = _object(fingerprint.get("params"), "base.fingerprint.params")
    declared = _object(_object(manifest.get("files"), "files").get(WEIGHTS), f"files.{WEIGHTS}")
    texts = [base.get("repo_id"), base.get("revision"), base.get("model_type"), fingerprint.get("root")]
    if not all(one is None or isinstance(one, str) for one in (*texts, *params.values(), declared.get("sha256"))):
        raise InvalidPatch(f"{MANIFEST}: names, revisions and digests are text")
    sites = _object(manifest.get("sites"), "sites")
    if not sites:
        raise InvalidPatch(f"{MANIFEST}: sites is missing or empty")
    for site, entry in sites.items():
        _shape(site, entry)
        terms = entry.get("terms")
        if not isinstance(terms, list) or not terms or not all(isinstance(term, dict) for term in terms):
            raise InvalidPatch(f"{MANIFEST}: {site}: terms is {str(terms)[:100]}; a list of terms is expected")
        for term in terms:
            _check_term(site, term)


def _check_term(site: str, term: Mapping[str, Any]) -> None:
    scale, count = term.get("scale", 1.0), _object(term.get("stats"), f"{site}: stats").get("nnz", 0)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise InvalidPatch(f"{MANIFEST}: {site}: scale is {scale!r}; a number is expected")
    if type(count) is not int or count < 0:
        raise InvalidPatch(f"{MANIFEST}: {site}: nnz is {count!r}; a count is expected")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidPatch(f"{MANIFEST}: {where} is a {type(value).__name__}; an object is expected")
    return value or {}


def recognise(folder: Folder, path: str, kind: str) -> Facts | None:
    """Facts of the native patch in `path`, if it is of this kind, without reading indices or values."""
    name = join(path, MANIFEST)
    if name not in folder.names():
        return None
    try:
        manifest = read_manifest(folder, path)
    except InvalidPatch:
        return None
    if manifest.get("kind") != kind:
        return None
    reason = f"{name} says format {FORMAT!r}, kind {kind!r}"
    files = (name, join(path, WEIGHTS))
    try:
        _check_manifest(manifest)
        terms = _read_terms(folder, path, manifest, check_values=False)
    except InvalidPatch as error:
        return Facts(kind, reason, path, files, problems=(str(error),))
    base = _training_base(manifest)
    dtypes: Counter[str] = Counter()
    for term in terms:
        value = term.fields["val" if term.term == "sparse" else "delta"]
        dtypes[value.dtype] += value.numel
    return Facts(
        kind=kind,
        reason=reason,
        path=path,
        files=files,
        base=base,
        targets=targets_of(term.site for term in terms),
        layers=layers_of(term.site for term in terms),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(files[1]),
        detail=_detail(manifest),
    )


def _training_base(manifest: Mapping[str, Any]) -> TrainingBase:
    base = manifest.get("base") or {}
    fingerprint = base.get("fingerprint") or {}
    return TrainingBase(
        name=base.get("repo_id"),
        revision=base.get("revision"),
        fingerprint=fingerprint.get("root"),
        quantisation="unknown" if "quantization" not in base else str(base["quantization"] or "none"),
        parameters=fingerprint.get("params") or {},
    )


def _detail(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Entries selected and their share of the touched parameters, where the manifest's statistics tell."""
    stats = [term.get("stats") or {} for entry in manifest["sites"].values() for term in entry["terms"]]
    numel = sum(prod(entry["shape"]) * len(entry["terms"]) for entry in manifest["sites"].values())
    entries = sum(int(one.get("nnz", 0)) for one in stats)
    model_type = (manifest.get("base") or {}).get("model_type")
    return {"entries": entries, "density": entries / numel if numel else 0.0, "model_type": model_type}


def read_patch(folder: Folder, path: str = "", base: Checkpoint | None = None, *, kind: str | None = None) -> Patch:
    """The native patch in `path` of a folder, values still on disk, indices and bits read and checked.

    kind: the kind it must be; None takes any. With a base: names are the base's, shapes are checked. Raises
    BrokenContainer, InvalidPatch where manifest and tensors contradict each other, UnknownSite or ShapeMismatch.
    """
    manifest = read_manifest(folder, path)
    kind = kind or str(manifest.get("kind"))
    facts = recognise(folder, path, kind)
    if facts is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else f"{join(path, MANIFEST)}: not a patch of kind {kind!r}")
    terms = _read_terms(folder, path, manifest, check_values=True)
    if base is not None:
        shapes = {site: _shape(site, entry) for site, entry in manifest["sites"].items()}
        terms = _on_base(terms, shapes, base)
    return Patch(facts, json_digest(manifest), terms)


def _on_base(
    terms: Iterable[SiteTerm], shapes: Mapping[str, tuple[int, ...]], base: Checkpoint
) -> tuple[SiteTerm, ...]:
    names = naming(shapes, base)
    found = []
    for term in terms:
        site = names.site(term.site)
        if base.tensors[site].shape != shapes[term.site]:
            raise ShapeMismatch(site, shapes[term.site], base.name, base.tensors[site].shape)
        found.append(replace(term, site=site))
    return tuple(found)


def _read_terms(folder: Folder, path: str, manifest: Mapping[str, Any], *, check_values: bool) -> tuple[SiteTerm, ...]:
    weights = join(path, WEIGHTS)
    if weights not in folder.names():
        raise InvalidPatch(f"{weights}: missing; patch.json alone is no patch")
    _check_digest(folder, weights, manifest)
    tensors, _ = open_tensors(folder, weights, limit_bytes=PATCH_HEADER_BYTES)
    shapes = {site: _shape(site, entry) for site, entry in manifest["sites"].items()}
    terms = tuple(_terms(manifest["sites"], tensors))
    used = {handle.name for term in terms for handle in term.fields.values()}
    stray = sorted(set(tensors) - used)
    if stray:
        raise InvalidPatch(f"{weights}: tensor {stray[0]} belongs to no term of patch.json")
    for term in terms:
        _CHECKS.get(term.term, _unknown_kind)(term, shapes[term.site], check_values)
    return terms


def _check_digest(folder: Folder, weights: str, manifest: Mapping[str, Any]) -> None:
    declared = (manifest.get("files") or {}).get(WEIGHTS) or {}
    if declared.get("sha256") != folder.digest(weights).removeprefix("sha256:"):
        raise InvalidPatch(
            f"{weights}: its sha256 is {folder.digest(weights)}, patch.json says {declared.get('sha256')}"
        )


def _shape(site: str, entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(one) is int and one >= 0 for one in shape):
        raise InvalidPatch(f"patch.json: {site}: shape is {shape!r}; a list of sizes is expected")
    return tuple(shape)


def _terms(sites: Mapping[str, Any], tensors: Mapping[str, TensorHandle]) -> Iterator[SiteTerm]:
    by_term: dict[str, dict[str, TensorHandle]] = {}
    for name, handle in tensors.items():
        prefix, _, field_name = name.rpartition(".")
        by_term.setdefault(prefix, {})[field_name] = handle
    for site, entry in sorted(sites.items()):
        for term in entry["terms"]:
            options = {
                key: value for key, value in term.items() if key not in ("id", "kind", "scale", "stats", "dtype")
            }
            fields = by_term.get(f"{site}::{term.get('id')}", {})
            yield SiteTerm(site, str(term.get("kind")), fields, float(term.get("scale", 1.0)), options)


_FIELD_DTYPES: Mapping[str, frozenset[str]] = {
    "val": frozenset({"F16", "BF16", "F32", "F64"}),
    "delta": frozenset({"F16", "BF16", "F32", "F64"}),
    "bits": frozenset({"U8"}),
    "idx": frozenset({"I32", "I64"}),
    "crow": frozenset({"I32", "I64"}),
    "col": frozenset({"U16"}),
}


def _check_fields(term: SiteTerm, wanted: set[str]) -> None:
    if set(term.fields) != wanted:
        found = sorted(term.fields)
        raise InvalidPatch(f"{term.site}: {term.term} with fields {found}; {sorted(wanted)} are expected")
    for name, handle in term.fields.items():
        if handle.dtype not in _FIELD_DTYPES[name]:
            allowed = " or ".join(sorted(_FIELD_DTYPES[name]))
            raise InvalidPatch(f"{term.site}: {name} has dtype {handle.dtype}; {allowed} is expected")


def _check_sparse(term: SiteTerm, shape: tuple[int, ...], check_values: bool) -> None:
    index = str(term.options.get("index"))
    _check_fields(term, {"val", *DECODERS.get(index, ((),))[0]})
    if not check_values:
        return
    arrays = {name: as_array(handle) for name, handle in term.fields.items() if name != "val"}
    try:
        indices = decode_indices(index, arrays, shape)
    except InvalidPatch as error:
        raise InvalidPatch(f"{term.site}: {error}") from error
    if term.fields["val"].shape != indices.shape:
        raise InvalidPatch(f"{term.site}: {term.fields['val'].shape} values for {indices.size} positions")


def _check_mask(term: SiteTerm, shape: tuple[int, ...], check_values: bool) -> None:
    if term.options.get("mode") != "select":
        raise InvalidPatch(f"{term.site}: mask mode {term.options.get('mode')!r}; 'select' is read here")
    _check_fields(term, {"bits", "delta"})
    if term.fields["delta"].shape != shape:
        raise InvalidPatch(f"{term.site}: its delta is {term.fields['delta'].shape}, patch.json says {shape}")
    if check_values:
        try:
            unpack_bits(as_array(term.fields["bits"]), prod(shape))
        except InvalidPatch as error:
            raise InvalidPatch(f"{term.site}: {error}") from error


def _unknown_kind(term: SiteTerm, shape: tuple[int, ...], check_values: bool) -> None:
    raise InvalidPatch(f"{term.site}: term kind {term.term!r}; the native format holds {', '.join(_CHECKS)}")


_CHECKS: Mapping[str, Callable[[SiteTerm, tuple[int, ...], bool], None]] = {
    "sparse": _check_sparse,
    "mask": _check_mask,
}
