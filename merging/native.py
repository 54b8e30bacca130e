"""The native patch format: `patch.json` and `patch.safetensors` in one folder, read and written without the service.

A trainer imports this file alone: numpy arrays in, a folder out. `patch.json` says what each term is, as `manifest.py`
has it; tensors are named `<parameter>::<term>.<field>`, those of several terms `@shared::<bank>.<field>`. Parameters
carry the base's own names. Which fields a term has, of which dtypes and sizes, is said with the term. Packed bits are
row-major, least significant bit first, the last byte filled with zeros. Never imports torch.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, Folder, SafetensorsWriter, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.encodings import (
    NUMPY,
    Array,
    as_array,
    as_floats,
    corner,
    encode_indices,
    pack_bits,
)
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, NotFoldable, ShapeMismatch
from adapterhub.merging.folders import canonical_json, join, json_digest, read_json
from adapterhub.merging.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    RESERVED,
    SHARED,
    WEIGHTS,
    check_manifest,
    training_base,
    usage,
)
from adapterhub.merging.patch import Effect, Facts, Patch, PatchKind, SiteTerm, TrainingBase
from adapterhub.merging.registry import FLOATS, Stored, StoredField, TermSpec
from adapterhub.merging.sites import layers_of, naming, targets_of
from adapterhub.merging.terms import terms

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST",
    "WEIGHTS",
    "PatchWriter",
    "StoredTerm",
    "coded",
    "lowrank",
    "native_kind",
    "prune",
    "read_manifest",
    "read_patch",
    "rebase",
    "recognise",
    "select",
    "signs",
    "sparse",
    "term",
    "write_patch",
    "xor",
]

Values = Array | tuple[str, Array]
"""An array, or one with its safetensors dtype where numpy has none: BF16 as its bits in uint16."""

_DTYPES = {np.dtype(name): dtype for dtype, name in NUMPY.items()}
SUM = "sum"
"""The kind of a patch whose terms are of several kinds."""
LOWRANK_SHARED = "lowrank_shared"
"""The kind of a patch whose terms are all low-rank and take A or B from a bank."""


@dataclass(frozen=True)
class StoredTerm:
    """One term on one parameter, its tensors in memory: what `term`, `sparse` and their like make for `write_patch`.

    kind: key of the term registry. fields: (safetensors dtype, array) by field name; BF16 arrays are bits as uint16.
    shared: fields taken from a bank, "<bank>.<field>" by name. delta_ref: digest of the patch in the same repository
    whose `delta` on the same parameter this term takes.
    """

    kind: str
    shape: tuple[int, ...]
    fields: Mapping[str, tuple[str, Array]]
    scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    delta_ref: str | None = None


def term(
    kind: str,
    shape: Sequence[int],
    *,
    scale: float = 1.0,
    options: Mapping[str, Any] | None = None,
    stats: Mapping[str, Any] | None = None,
    shared: Mapping[str, str] | None = None,
    delta_ref: str | None = None,
    **fields: Values,
) -> StoredTerm:
    """Any term of the registry on a parameter of this shape, from the fields that its docstring names.

    Signs, whose field has the name of an argument here, are made by `signs` or as a `StoredTerm`.
    """
    typed = {name: _typed(name, values) for name, values in fields.items()}
    return StoredTerm(kind, tuple(shape), typed, scale, options or {}, stats or {}, shared or {}, delta_ref)


def _typed(name: str, values: Values) -> tuple[str, Array]:
    if isinstance(values, tuple):
        return values
    if values.dtype not in _DTYPES:
        raise InvalidPatch(f"{name} has dtype {values.dtype}; one of {', '.join(map(str, _DTYPES))} is expected")
    return _DTYPES[values.dtype], values


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


def prune(kept: Array) -> StoredTerm:
    """A prune term that sets entries to zero where `kept` (bool, the shape of the parameter) is false."""
    return StoredTerm("prune", kept.shape, {"bits": ("U8", pack_bits(kept))}, stats={"nnz": int(kept.sum())})


def lowrank(A: Values, B: Values, *, scale: float = 1.0, transpose: bool = False, **fields: Values) -> StoredTerm:
    """A low-rank term B·A of A (r, in) and B (out, r), optionally with d (r,) and b (out,).

    transpose: whether the parameter is stored (in, out), as GPT-2's Conv1D and embeddings are.
    """
    typed = {name: _typed(name, values) for name, values in {"A": A, "B": B, **fields}.items()}
    shape = (typed["B"][1].shape[0], *typed["A"][1].shape[1:])
    options = {"transpose": True} if transpose else {}
    return StoredTerm("lowrank", shape[::-1] if transpose else shape, typed, scale, options)


def signs(delta: Array, *, rows: bool = False, groups: int = 1, levels: int = 1, scale: float = 1.0) -> StoredTerm:
    """A delta as one sign an entry and the mean of its magnitudes, BitDelta's form; zero counts as +.

    rows: one mean for each row instead of one for all; groups: how many means for as many equal parts of the columns.
    levels: how often what is left over is taken again. Sums run in float64, scales are stored as float32.
    """
    matrix = delta.reshape(delta.shape[0] if delta.ndim else 1, -1).astype(np.float64)
    out, columns = matrix.shape
    if groups < 1 or columns % groups:
        raise InvalidPatch(f"{groups} groups do not divide {columns} columns")
    packed, scales = [], []
    for _ in range(levels):
        grouped = np.abs(matrix).reshape(out, groups, columns // groups)
        means = grouped.mean((2,) if rows else (0, 2), keepdims=True).astype(np.float32)  # (out or 1, groups, 1)
        is_plus = matrix >= 0
        packed.append(pack_bits(is_plus))
        scales.append(means[:, :, 0])
        size = np.broadcast_to(means.astype(np.float64), grouped.shape).reshape(out, columns)
        matrix = matrix - np.where(is_plus, size, -size)
    fields = {"sign": ("U8", np.stack(packed)), "scale": ("F32", np.stack(scales))}
    return StoredTerm("signs", delta.shape, fields, scale)


def coded(
    delta: Array, precision: Sequence[tuple[int, int]], *, group: int = 128, scale_dtype: str = "F16"
) -> tuple[StoredTerm, ...]:
    """A matrix as its largest singular directions, each in a few bits: one term for every (bits, ranks), largest first.

    delta: (out, in) float. group: codes that share a scale, where it divides a factor's length; else all of a rank do.
    Singular values are halved between the factors, codes rounded to the nearest. Source: arXiv:2406.08903 sec. 3.2.
    Differs: there codes are chosen by GPTQ on samples.
    """
    u, s, vh = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
    half, first, found = np.sqrt(s)[:, None], 0, []
    for bits, ranks in precision:
        here = slice(first, min(first + ranks, len(s)))
        first = here.stop
        fields: dict[str, tuple[str, Array]] = {}
        for name, rows in (("A", half[here] * vh[here]), ("B", half[here] * u.T[here])):
            codes, scales = _codes(rows, bits, group if rows.shape[1] % group == 0 else rows.shape[1], scale_dtype)
            fields |= {name: ("U8", codes), f"{name}_scale": (scale_dtype, scales)}
        if here.stop > here.start:
            found.append(StoredTerm("lowrank_coded", delta.shape, fields, options={"bits": bits}))
    return tuple(found)


def _codes(rows: Array, bits: int, group: int, scale_dtype: str) -> tuple[Array, Array]:
    """Packed codes, and the scales (rows, groups) that bring the largest number of a group to the largest code."""
    grouped = rows.reshape(len(rows), -1, group)
    most = 2 ** (bits - 1) - 1
    scales = (np.abs(grouped).max(2) / most).astype(NUMPY[scale_dtype])
    steps = scales.astype(np.float64)[:, :, None]
    exact = np.divide(grouped, steps, out=np.zeros_like(grouped), where=steps != 0)
    codes = np.clip(np.rint(exact), -most, most) + 2 ** (bits - 1)
    digits = (codes.astype(np.int64).reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little"), scales


def xor(base: TensorHandle, tuned: TensorHandle, base_digest: str) -> StoredTerm:
    """The bits in which two tensors of one dtype and shape differ. base_digest: `fingerprint.tensor_digest` of base."""
    widths = {"F16": "U16", "BF16": "U16", "F32": "I32", "F64": "I64"}
    if base.dtype not in widths or (tuned.dtype, tuned.shape) != (base.dtype, base.shape):
        raise InvalidPatch(
            f"{base.name}: {tuned.dtype} {tuned.shape} beside a base of {base.dtype} {base.shape}; an xor term takes "
            "two tensors of one float dtype and shape"
        )
    name = NUMPY[widths[base.dtype]]
    bits = np.frombuffer(base.read(), name) ^ np.frombuffer(tuned.read(), name)
    fields = {"bits": (widths[base.dtype], bits.reshape(base.shape))}
    return StoredTerm("xor", base.shape, fields, options={"dtype": base.dtype, "base_digest": base_digest})


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_patch(
    folder: Path,
    *,
    sites: Mapping[str, Sequence[StoredTerm] | StoredTerm],
    base: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
    shared: Mapping[str, Mapping[str, Values]] | None = None,
    contract: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    parts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write one patch into `folder` and give its digest: sha256 of the canonical patch.json, files' digests inside.

    sites: terms by the base's parameter name; those that change W act in the order given. base: what is known of it,
    such as {"repo_id", "revision", "model_type", "fingerprint": {"root": "sha256:<hex>", "params": {...}}, "recipe",
    "requires"}. shared: banks of fields by name. contract, training, parts: as `manifest.py` has them. Equal arguments
    give equal bytes. Raises InvalidPatch for what a reader would refuse, and ValueError for NaN in a number of the
    manifest.
    """
    with PatchWriter(folder) as writer:
        for bank, fields in (shared or {}).items():
            writer.share(bank, fields)
        for site, one in sites.items():
            writer.add(site, (one,) if isinstance(one, StoredTerm) else tuple(one))
        return writer.finish(base=base, provenance=provenance, contract=contract, training=training, parts=parts)


class PatchWriter:
    """Writes one patch term by term, holding one tensor in memory: values wait in a file without a name.

    As a context manager it throws away what was not finished.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (`__exit__` closes it)
        self._tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
        self._sites: dict[str, dict[str, Any]] = {}
        self._kinds: Counter[str] = Counter()
        self._has_bank = True

    def share(self, bank: str, fields: Mapping[str, Values]) -> None:
        """Store fields that terms name as "<bank>.<field>"."""
        for name, values in fields.items():
            self._put(f"{SHARED}::{bank}.{name}", *_typed(name, values))

    def add(self, site: str, site_terms: Sequence[StoredTerm]) -> None:
        """Store the terms of one parameter. Raises InvalidPatch where they do not fit it, or were stored before."""
        if site in self._sites or not site_terms:
            raise InvalidPatch(f"{site}: {'its terms were stored before' if site_terms else 'has no term'}")
        self._sites[site] = _site_entry(site, site_terms)
        for number, one in enumerate(site_terms):
            self._kinds[one.kind] += 1
            self._has_bank = self._has_bank and bool(one.shared)
            for name, (dtype, array) in one.fields.items():
                self._put(f"{site}::t{number}.{name}", dtype, array)

    def finish(
        self,
        *,
        base: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        contract: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        parts: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Write both files and give the patch's digest. Raises InvalidPatch for a patch without terms."""
        if not self._kinds:
            raise InvalidPatch("a patch needs at least one term")
        size_bytes, digest = self._write_weights()
        more = {"contract": dict(contract or {}), "training": dict(training or {}), "parts": [dict(p) for p in parts]}
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": _kind(self._kinds, self._has_bank),
            "effect": _effect(self._kinds),
            "foldable": True,
            "base": dict(base),
            "sites": dict(sorted(self._sites.items())),
            "provenance": dict(provenance or {}),
            "files": {WEIGHTS: {"size": size_bytes, "sha256": digest.removeprefix("sha256:")}},
            **{key: value for key, value in more.items() if value},
        }
        check_manifest(manifest)
        (self._folder / MANIFEST).write_bytes(canonical_json(manifest))
        return json_digest(manifest)

    def _put(self, name: str, dtype: str, array: Array) -> None:
        self._tensors[name] = (dtype, array.shape, self._spool.tell())
        self._spool.write(np.ascontiguousarray(array).tobytes())

    def _write_weights(self) -> tuple[int, str]:
        shapes = {name: (dtype, shape) for name, (dtype, shape, _) in self._tensors.items()}
        metadata = {"format": "pt", FORMAT: str(FORMAT_VERSION)}
        with SafetensorsWriter(self._folder / WEIGHTS, shapes, metadata) as writer:
            for name, (start, end) in writer.layout.offsets.items():
                self._spool.seek(self._tensors[name][2])
                writer.write(name, self._spool.read(end - start))
            return writer.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._spool.close()


def _kind(kinds: Iterable[str], has_bank: bool) -> str:
    """The one kind of a patch's terms, "sum" where there are several."""
    found = sorted(set(kinds))
    if found == ["lowrank"] and has_bank:
        return LOWRANK_SHARED
    return found[0] if len(found) == 1 else SUM


def _effect(kinds: Iterable[str]) -> Effect:
    """What the terms do together: "affine" where one changes W, "replace" where all put values in its place."""
    effects = {terms()[kind].effect for kind in kinds}
    if "affine" in effects:
        return "affine"
    return "replace" if effects == {"replace"} else "additive"


def _site_entry(site: str, site_terms: Sequence[StoredTerm]) -> dict[str, Any]:
    shapes = {one.shape for one in site_terms}
    if len(shapes) != 1:
        raise InvalidPatch(f"terms of one parameter have shapes {sorted(shapes)}")
    entries = [_term_entry(number, one) for number, one in enumerate(site_terms)]
    for one in site_terms:
        handles = {name: _handle(name, dtype, array) for name, (dtype, array) in one.fields.items()}
        _check_term(site, one, handles, check_values=True)
    entry: dict[str, Any] = {"shape": list(site_terms[0].shape), "terms": entries}
    affine = [f"t{number}" for number, one in enumerate(site_terms) if terms()[one.kind].effect == "affine"]
    if affine and len(site_terms) > 1:
        entry["sequence"] = affine
    _check_together(site, entry)
    return entry


def _handle(name: str, dtype: str, array: Array) -> TensorHandle:
    return TensorHandle(name, dtype, array.shape, lambda: memoryview(np.ascontiguousarray(array).tobytes()))


def _term_entry(number: int, one: StoredTerm) -> dict[str, Any]:
    entry = {"id": f"t{number}", "kind": one.kind, "scale": float(one.scale), "stats": dict(one.stats)}
    if one.shared:
        entry["shared"] = dict(one.shared)
    if one.delta_ref is not None:
        entry["delta_ref"] = one.delta_ref
    return {**entry, **one.options}


def rebase(folder: Folder, path: str, base: TrainingBase) -> Mapping[str, bytes]:
    """patch.json of a patch as it reads once the patch belongs to `base`; its weights stay as they are.

    A recipe that made the base, and the patches that it requires, stay: they are not part of the other base either. So
    the other base's values are not those that the patch stands on, and are not written down as such.
    """
    manifest = read_manifest(folder, path)
    stands_on = manifest.get("base") or {}
    is_on_top = bool(stands_on.get("recipe") or stands_on.get("requires"))
    params = {} if is_on_top else {"params": dict(base.parameters)}
    fingerprint = {"root": base.fingerprint, **params} if base.fingerprint else None
    named = {"repo_id": base.name, "revision": base.revision, "fingerprint": fingerprint}
    kept = {key: value for key, value in stands_on.items() if key not in named}
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


def native_kind(name: str, *, title: str, summary: str, source: str, has_factors: bool = False) -> PatchKind:
    """The patch kind of manifests of this kind: recognised, checked, read and rebased alike for all of them."""
    return PatchKind(
        name=name,
        title=title,
        summary=summary,
        source=source,
        recognise=lambda folder, path: recognise(folder, path, name),
        read=lambda folder, path, base: read_patch(folder, path, base, kind=name),
        rebase=rebase,
        has_factors=has_factors,
    )


def recognise(folder: Folder, path: str, kind: str) -> Facts | None:
    """Facts of the native patch in `path`, if it is of this kind, without reading indices or values."""
    name = join(path, MANIFEST)
    if name not in folder.names():
        return None
    try:
        manifest = read_manifest(folder, path)
    except InvalidPatch:
        return None
    if manifest.get("kind") != kind or manifest.get("effect") == "runtime":
        return None
    reason = f"{name} says format {FORMAT!r}, kind {kind!r}"
    files = (name, join(path, WEIGHTS))
    try:
        check_manifest(manifest)
        found = _Reader(folder, path, manifest).terms(check_values=False)
        _check_summary(manifest, found)
    except InvalidPatch as error:
        return Facts(kind, reason, path, files, problems=(str(error),))
    return _facts(Facts(kind, reason, path, files), folder, manifest, found)


def _facts(facts: Facts, folder: Folder, manifest: Mapping[str, Any], found: Sequence[SiteTerm]) -> Facts:
    handles = {handle.name: handle for one in found for handle in one.fields.values()}.values()
    counted = [handle for handle in handles if handle.dtype in FLOATS] or list(handles)
    dtypes: Counter[str] = Counter()
    for handle in counted:
        dtypes[handle.dtype] += handle.numel
    ranks = [one.fields["A"].shape[0] for one in found if "A" in one.fields and "B" in one.fields]
    return replace(
        facts,
        effect=_effect(one.term for one in found),
        base=training_base(manifest),
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        targets=targets_of(one.site for one in found),
        layers=layers_of(one.site for one in found),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(facts.files[1]),
        detail=_detail(manifest, found),
        **usage(manifest),
    )


def _detail(manifest: Mapping[str, Any], found: Sequence[SiteTerm]) -> dict[str, Any]:
    """Kinds of terms, and entries selected with their share of the touched parameters where the statistics tell."""
    stats = [one.get("stats") or {} for entry in manifest["sites"].values() for one in entry["terms"]]
    numel = sum(prod(entry["shape"]) * len(entry["terms"]) for entry in manifest["sites"].values())
    entries = sum(int(one.get("nnz", 0)) for one in stats)
    model_type = (manifest.get("base") or {}).get("model_type")
    refs = {one["delta_ref"] for entry in manifest["sites"].values() for one in entry["terms"] if "delta_ref" in one}
    return {
        "entries": entries,
        "density": entries / numel if numel else 0.0,
        "model_type": model_type,
        "terms": dict(sorted(Counter(one.term for one in found).items())),
        **({"delta_refs": sorted(refs)} if refs else {}),
    }


def _check_summary(manifest: Mapping[str, Any], found: Sequence[SiteTerm]) -> None:
    """Raises InvalidPatch where kind and effect are not those of the terms."""
    entries = [one for entry in manifest["sites"].values() for one in entry["terms"]]
    kind = _kind((one.term for one in found), all(one.get("shared") for one in entries))
    effect = _effect(one.term for one in found)
    for name, expected in (("kind", kind), ("effect", effect)):
        said = manifest.get(name, expected)
        if said != expected:
            raise InvalidPatch(f"{MANIFEST}: {name} is {said!r}; its terms make it {expected!r}")
    if manifest.get("foldable") is False:
        raise InvalidPatch(f"{MANIFEST}: foldable is false; every one of its terms becomes weights")


def read_patch(
    folder: Folder,
    path: str = "",
    base: Checkpoint | None = None,
    *,
    kind: str | None = None,
    part: str | None = None,
) -> Patch:
    """The native patch in `path` of a folder, values still on disk, indices and bits read and checked.

    kind: the kind it must be; None takes any. part: the name of one of its parts, whose terms alone are wanted. With a
    base: names are the base's, shapes are checked. Raises BrokenContainer, InvalidPatch where manifest and tensors
    contradict each other, NotFoldable where the patch that a delta_ref names is not in the folder, UnknownSite or
    ShapeMismatch.
    """
    manifest = read_manifest(folder, path)
    kind = kind or str(manifest.get("kind"))
    facts = recognise(folder, path, kind)
    if facts is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else f"{join(path, MANIFEST)}: not a patch of kind {kind!r}")
    found = _Reader(folder, path, manifest).terms(check_values=True)
    if part is not None:
        wanted = _part(manifest, part)
        found = tuple(one for one in found if one.site in wanted)
    if base is not None:
        shapes = {site: tuple(entry["shape"]) for site, entry in manifest["sites"].items()}
        found = _on_base(found, shapes, base)
    digest = json_digest(manifest)
    return Patch(facts, digest if part is None else json_digest({"patch": digest, "part": part}), found)


def _part(manifest: Mapping[str, Any], part: str) -> frozenset[str]:
    for one in manifest.get("parts") or ():
        if one["name"] == part:
            if "path" in one:
                raise InvalidPatch(
                    f"{MANIFEST}: part {part!r} is a patch of its own, in {one['path']!r}; read it there"
                )
            return frozenset(one.get("sites") or ())
    names = ", ".join(one["name"] for one in manifest.get("parts") or ()) or "none"
    raise InvalidPatch(f"{MANIFEST}: no part {part!r}; it has {names}")


def _on_base(
    found: Iterable[SiteTerm], shapes: Mapping[str, tuple[int, ...]], base: Checkpoint
) -> tuple[SiteTerm, ...]:
    names = naming(shapes, base)
    placed = []
    for one in found:
        site = names.site(one.site)
        if base.tensors[site].shape != shapes[one.site]:
            raise ShapeMismatch(site, shapes[one.site], base.name, base.tensors[site].shape)
        placed.append(replace(one, site=site))
    return tuple(placed)


class _Reader:
    """The terms of one patch.json and its tensors."""

    def __init__(self, folder: Folder, path: str, manifest: Mapping[str, Any]) -> None:
        self._folder, self._path, self._manifest = folder, path, manifest
        self._file = join(path, WEIGHTS)
        if self._file not in folder.names():
            raise InvalidPatch(f"{self._file}: missing; patch.json alone is no patch")
        declared = (manifest.get("files") or {}).get(WEIGHTS) or {}
        if declared.get("sha256") != folder.digest(self._file).removeprefix("sha256:"):
            raise InvalidPatch(
                f"{self._file}: its sha256 is {folder.digest(self._file)}, patch.json says {declared.get('sha256')}"
            )
        tensors, _ = open_tensors(folder, self._file, limit_bytes=PATCH_HEADER_BYTES)
        self._tensors = tensors
        self._own: dict[str, dict[str, TensorHandle]] = {}
        for name, handle in tensors.items():
            prefix, _, leaf = name.rpartition(".")
            self._own.setdefault(prefix, {})[leaf] = handle
        self._used: set[str] = set()
        self._referred: dict[str, Mapping[str, TensorHandle]] = {}

    def terms(self, *, check_values: bool) -> tuple[SiteTerm, ...]:
        """Every term, sites in order, those of one site in their declared order. Raises InvalidPatch, NotFoldable."""
        found = []
        for site, entry in sorted(self._manifest["sites"].items()):
            if site == SHARED:
                raise InvalidPatch(f"{MANIFEST}: {SHARED} stands for banks and is no parameter's name")
            _check_together(site, entry)
            found += [self._term(site, entry, one, check_values) for one in _ordered(entry)]
        stray = sorted(self._tensors.keys() - self._used)
        if stray:
            raise InvalidPatch(f"{self._file}: tensor {stray[0]} belongs to no term of patch.json")
        return tuple(found)

    def _term(self, site: str, entry: Mapping[str, Any], said: Mapping[str, Any], check_values: bool) -> SiteTerm:
        own = self._own.get(f"{site}::{said['id']}", {})
        self._used |= {handle.name for handle in own.values()}
        known = {one.name for one in _spec(site, said["kind"]).options}
        options = {key: value for key, value in said.items() if key in known or key not in RESERVED}
        stored = StoredTerm(said["kind"], tuple(entry["shape"]), {}, float(said.get("scale", 1.0)), options)
        fields = own | self._shared(site, stored, own, said.get("shared") or {})
        is_referred = "delta_ref" in said
        if is_referred and check_values:
            fields |= self._delta(site, said["delta_ref"])
        _check_term(
            site,
            stored,
            fields,
            check_values=check_values,
            elsewhere=frozenset({"delta"}) if is_referred and not check_values else frozenset(),
        )
        return SiteTerm(site, stored.kind, fields, stored.scale, options)

    def _shared(
        self, site: str, stored: StoredTerm, own: Mapping[str, TensorHandle], said: Mapping[str, str]
    ) -> dict[str, TensorHandle]:
        """Fields from banks; of a bank that is larger than this site needs, the first rows and columns."""
        found = {}
        spec = _spec(site, stored.kind)
        sizes = _known_sizes(stored)
        for name in own:
            _bind(sizes, spec.fields.get(name), own[name].shape)
        for name, place in said.items():
            key = f"{SHARED}::{place}"
            if key not in self._tensors or name in own:
                what = "is stored with it too" if name in own else f"{self._file} has no tensor {key}"
                raise InvalidPatch(f"{MANIFEST}: {site}: {name} is to come from {place}, and {what}")
            self._used.add(key)
            handle, wanted = self._tensors[key], spec.fields.get(name)
            if wanted is not None and wanted.sizes is not None and len(wanted.sizes) == len(handle.shape):
                shape = [sizes.get(str(size), has) for size, has in zip(wanted.sizes, handle.shape, strict=True)]
                handle = corner(handle, shape) if "W" not in wanted.sizes else handle
            found[name] = handle
        return found

    def _delta(self, site: str, digest: str) -> Mapping[str, TensorHandle]:
        """The delta that another patch of the repository has on this parameter."""
        if digest not in self._referred:
            self._referred[digest] = _deltas_of(self._folder, digest)
        if site not in self._referred[digest]:
            raise InvalidPatch(f"{site}: patch {digest} has no delta on this parameter")
        return {"delta": self._referred[digest][site]}


def _deltas_of(folder: Folder, digest: str) -> Mapping[str, TensorHandle]:
    """`delta` fields by parameter of the patch of this digest, wherever in the folder. Raises NotFoldable."""
    for name in folder.names():
        if name != MANIFEST and not name.endswith("/" + MANIFEST):
            continue
        path = name.removesuffix(MANIFEST).removesuffix("/")
        manifest = read_json(folder, name)
        if json_digest(manifest) != digest:
            continue
        patch = read_patch(folder, path)
        return {one.site: one.fields["delta"] for one in patch.terms if "delta" in one.fields}
    raise NotFoldable(
        f"it takes its delta from patch {digest}, which is neither in this repository nor in the recipe; put that "
        "patch's folder beside it, or name it with weight 0, as in base + 0*shared + task"
    )


def _ordered(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The terms of a site, those of its sequence in that order and before the others."""
    by_id = {one["id"]: one for one in entry["terms"]}
    sequence = entry.get("sequence") or []
    yield from (by_id[one] for one in sequence)
    yield from (one for one in entry["terms"] if one["id"] not in sequence)


# ---- checking --------------------------------------------------------------------------------------------------------


def _spec(site: str, kind: str) -> TermSpec:
    spec = terms().get(kind)
    if spec is None:
        raise InvalidPatch(f"{site}: term kind {kind!r}; the native format holds {', '.join(terms())}")
    return spec


def _check_together(site: str, entry: Mapping[str, Any]) -> None:
    """Raises InvalidPatch unless the terms of one parameter go together in one order."""
    said = entry["terms"]
    ids = [one["id"] for one in said]
    if len(set(ids)) != len(ids):
        raise InvalidPatch(f"{MANIFEST}: {site}: two of its terms have one id")
    specs = {one["id"]: _spec(site, one["kind"]) for one in said}
    affine = [name for name, spec in specs.items() if spec.effect == "affine"]
    sequence = entry.get("sequence")
    if affine and len(said) > 1 and (sequence is None or sorted(sequence) != sorted(affine)):
        raise InvalidPatch(
            f"{MANIFEST}: {site}: its sequence is {sequence}; the terms that change W, {', '.join(affine)}, must be "
            "named there in the order in which they act, before what is added"
        )
    if sequence is not None and not set(sequence) <= set(affine):
        raise InvalidPatch(f"{MANIFEST}: {site}: its sequence names {sequence}; only {affine} change W")
    exact = [one for one in said if specs[one["id"]].is_exact]
    if exact and (len(said) > 1 or float(exact[0].get("scale", 1.0)) != 1.0):
        raise InvalidPatch(f"{MANIFEST}: {site}: {exact[0]['kind']} is exact bits: it acts alone and with scale 1")


def _check_term(
    site: str,
    one: StoredTerm,
    fields: Mapping[str, TensorHandle],
    *,
    check_values: bool,
    elsewhere: frozenset[str] = frozenset(),
) -> None:
    """Raises InvalidPatch unless a term's options, fields, dtypes, sizes and, if asked, positions and bits fit.

    elsewhere: fields that are not at hand and counted as there.
    """
    spec = _spec(site, one.kind)
    if not isfinite(one.scale):
        raise InvalidPatch(f"{MANIFEST}: {site}: scale is {one.scale!r}; a finite number is expected")
    _check_options(site, spec, one.options)
    held = {name: wanted for name, wanted in spec.fields.items() if wanted.sizes is not None}
    expected = {name for name, wanted in held.items() if not wanted.is_optional} | elsewhere
    present = fields.keys() | elsewhere | set(one.shared) | ({"delta"} if one.delta_ref else set())
    if not expected <= present or not present <= held.keys():
        optional = sorted(held.keys() - expected)
        more = f", and {' or '.join(optional)} may be there," if optional else ""
        raise InvalidPatch(f"{site}: {one.kind} with fields {sorted(present)}; {sorted(expected)}{more} are expected")
    sizes, shapes = _known_sizes(one), {}
    for name, handle in fields.items():
        wanted = held[name]
        if handle.dtype not in wanted.dtypes:
            allowed = " or ".join(sorted(wanted.dtypes))
            raise InvalidPatch(f"{site}: {name} has dtype {handle.dtype}; {allowed} is expected")
        shapes[name] = _fit(site, one, name, wanted, handle.shape, sizes)
    if present - fields.keys():
        return
    whole = Stored(one.shape, shapes, sizes, one.options)
    problem = spec.misfit(whole)
    if problem is None and check_values:
        read = {name: as_array(handle) for name, handle in fields.items() if handle.dtype not in FLOATS}
        read |= {name: as_floats(handle) for name, handle in fields.items() if held[name].is_read}
        problem = spec.bad_value(whole, read)
    if problem is not None:
        raise InvalidPatch(f"{site}: {one.kind}: {problem}")


def _check_options(site: str, spec: TermSpec, options: Mapping[str, Any]) -> None:
    known = {one.name: one for one in spec.options}
    for name, value in options.items():
        if name not in known:
            raise InvalidPatch(f"{site}: {spec.name} has no option {name[:80]!r}; it has {', '.join(known) or 'none'}")
        try:
            known[name].check(value, f"{site}: {spec.name}")
        except InvalidParameter as error:
            raise InvalidPatch(str(error)) from error


def _known_sizes(one: StoredTerm) -> dict[str, int]:
    rows, rest = (one.shape[0] if one.shape else 1), prod(one.shape[1:])
    out, fan_in = (rest, rows) if one.options.get("transpose") else (rows, rest)
    numel = prod(one.shape)
    return {"out": out, "in": fan_in, "n": numel, "bytes": (numel + 7) // 8}


def _bind(sizes: dict[str, int], wanted: StoredField | None, shape: tuple[int, ...]) -> None:
    """Take sizes that only this field tells, where it has the dimensions for it."""
    if wanted is not None and wanted.sizes and len(shape) >= len(wanted.sizes) and "W" not in wanted.sizes:
        for size, found in zip(wanted.sizes, _merged(shape, len(wanted.sizes)), strict=True):
            if isinstance(size, str):
                sizes.setdefault(size, found)


def _merged(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape with as many sizes, further ones multiplied into the last."""
    return (*shape[: count - 1], prod(shape[count - 1 :])) if count else shape


def _fit(
    site: str, one: StoredTerm, name: str, wanted: StoredField, shape: tuple[int, ...], sizes: dict[str, int]
) -> tuple[int, ...]:
    """The field's sizes, merged; what they tell is added to `sizes`. Raises InvalidPatch where one is another."""
    assert wanted.sizes is not None
    if wanted.sizes == ("W",):
        expected = one.shape[::-1] if one.options.get("transpose") else one.shape
        if shape != expected:
            raise InvalidPatch(f"{site}: its {name} is {shape}, patch.json says {expected}")
        return shape
    _bind(sizes, wanted, shape)
    expected = tuple(sizes.get(str(size), -1) if isinstance(size, str) else size for size in wanted.sizes)
    merged = _merged(shape, len(expected)) if len(shape) >= len(expected) else shape
    if merged != expected:
        named = ", ".join(f"{size} = {sizes[size]}" if size in sizes else str(size) for size in map(str, wanted.sizes))
        raise InvalidPatch(f"{site}: {name} is {shape}; ({named}) is expected")
    return merged
