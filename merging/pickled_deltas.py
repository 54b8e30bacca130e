"""Deltas that research code saves, as native patches: LT-SFT's pytorch_diff.bin, BitDelta's diff.pt, and checkpoints.

LT-SFT: `diffs` (of other versions `body`) by parameter {size, index_steps, values}: positions counted with the first
dimension fastest, ascending, each as its difference from the one before; of the oldest version {size, indices, values}
with one list of coordinates a dimension; or a sparse tensor. `abs` (`head`) holds parameters that replace the base's.
BitDelta: `<module>.mask` int32 (in/32, out), bit j of word k being the sign of input 32k + j, `<module>.coeff` one
number; low-rank variants `<module>.A` (in, r) and `.B` (r, out); all else replaces the base's.

Source: cambridgeltl/composable-sft src/sft/sft.py; FasterDecoding/BitDelta bitdelta/{diff,binary_gemm_kernel}.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.merging import pickles
from adapterhub.merging.checkpoint import open_tensors
from adapterhub.merging.encodings import Array, as_array, as_floats, encode_indices, pack_bits
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.extended_checkpoints import FORMATS, dsee, format_of, lofit
from adapterhub.merging.folders import file_digest, read_json
from adapterhub.merging.native import MANIFEST, WEIGHTS, StoredTerm, write_patch
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.results import ResultFolder

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.merging.checkpoint import TensorHandle
    from adapterhub.merging.folders import Folder

_JOINT = "::"
"""Between the keys of nested mappings: no parameter's name holds it."""

Tensors = Mapping[str, "TensorHandle"]
Terms = dict[str, StoredTerm]


def to_native(folder: Folder, name: str, out: Path) -> tuple[str, Mapping[str, str]]:
    """Write a delta of research code as a native patch into `out`; gives the format's name and each parameter's term.

    name: a pickle, or a safetensors file. Raises InvalidPatch for one of no format known here, or one that contradicts
    itself; FileExistsError.
    """
    with _opened(folder, name) as (tensors, values):
        found = next((one for one in _FORMATS if _FORMATS[one][0](tensors)), None) or format_of(tensors)
        if found is None:
            first = next(iter(tensors), "nothing").replace(_JOINT, ".")
            known = ", ".join((*_FORMATS, *FORMATS))
            raise InvalidPatch(f"{name}: holds {first[:200]} and is no delta of {known}")
        if values:
            raise InvalidPatch(f"{name}: {next(iter(values)).replace(_JOINT, '.')[:200]} is no tensor")
        provenance = {"source_format": found, "source_files": {name: folder.digest(name)}, "converter": "adapterhub"}
        with ResultFolder(out) as result:
            if found == "LoFiT":
                modules = lofit(name, tensors, _heads(name, _config(folder)))
                write_runtime(result.path, "lofit", modules=modules, provenance=provenance)
                made = dict.fromkeys(modules, "lofit")
            else:
                sites: Mapping[str, Any] = (
                    dsee(name, tensors, _config(folder)) if found == "DSEE" else _FORMATS[found][1](name, tensors)
                )
                write_patch(result.path, sites=sites, base={}, provenance=provenance)
                made = {site: _kind(terms) for site, terms in sites.items()}
            for file in (MANIFEST, WEIGHTS):
                result.add(file, (result.path / file).stat().st_size, file_digest(result.path / file))
            result.publish()
    return found, made


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[tuple[Tensors, Mapping[str, Any]]]:
    if name.endswith(".safetensors"):
        yield open_tensors(folder, name)[0], {}
        return
    with pickles.opened(folder, name, joint=_JOINT, lists=True) as (tensors, values, _):
        yield tensors, values


def _kind(found: StoredTerm | Sequence[StoredTerm]) -> str:
    return found.kind if isinstance(found, StoredTerm) else " + ".join(one.kind for one in found)


def _config(folder: Folder) -> Mapping[str, Any]:
    return read_json(folder, "config.json") if "config.json" in folder.names() else {}


def _heads(name: str, config: Mapping[str, Any]) -> int:
    count = config.get("num_attention_heads", config.get("n_head"))
    if type(count) is not int or not 0 < count <= 10_000:
        raise InvalidPatch(f"{name}: config.json says num_attention_heads {count!r}; put the model's own beside it")
    return count


def _replacing(handle: TensorHandle) -> StoredTerm:
    return StoredTerm("replace", handle.shape, {"value": (handle.dtype, as_array(handle))})


# ---- LT-SFT ----------------------------------------------------------------------------------------------------------


def _is_lt_sft(tensors: Tensors) -> bool:
    return all(name.partition(_JOINT)[0] in ("diffs", "body", "abs", "head") for name in tensors) and bool(tensors)


def _lt_sft(file: str, tensors: Tensors) -> Terms:
    sites: Terms = {}
    encodings: dict[str, dict[str, TensorHandle]] = {}
    for name, handle in tensors.items():
        part, parameter, *field = name.split(_JOINT)
        if part in ("abs", "head") and not field:
            sites[parameter] = _replacing(handle)
        elif part in ("diffs", "body") and field:
            encodings.setdefault(parameter, {})[_JOINT.join(field)] = handle
        else:
            raise InvalidPatch(f"{file}: {name.replace(_JOINT, '.')[:200]} is no part of an LT-SFT delta")
    for parameter, fields in encodings.items():
        if parameter in sites:
            raise InvalidPatch(f"{file}: {parameter[:200]} is both replaced and changed")
        where = f"{file}: {parameter[:200]}"
        sites[parameter] = sparse_term(where, fields)
    return sites


def sparse_term(where: str, fields: Mapping[str, TensorHandle]) -> StoredTerm:
    """A sparse term with row-major positions from any of LT-SFT's encodings; values at one position are summed.

    fields: size, values, and index_steps, coordinates or indices. Raises InvalidPatch; `where` begins its sentence.
    """
    if "size" not in fields:
        raise InvalidPatch(f"{where}: has no size")
    shape = tuple(as_array(fields["size"]).reshape(-1).tolist())
    if not all(type(one) is int and 0 < one < 2**40 for one in shape) or prod(shape) >= 2**48:
        raise InvalidPatch(f"{where}: its size is {str(shape)[:80]}; whole numbers above 0 are expected")
    values = as_floats(fields["values"]) if "values" in fields else np.zeros(0)
    coordinates = _coordinates(where, fields, shape)
    if values.ndim != 1 or coordinates.shape != (len(shape), len(values)):
        raise InvalidPatch(f"{where}: {values.shape} values for {coordinates.shape[1:]} positions")
    outside = (coordinates < 0) | (coordinates >= np.array(shape)[:, None])
    if outside.any():
        raise InvalidPatch(f"{where}: a position lies outside {shape}")
    positions, inverse = np.unique(np.ravel_multi_index(tuple(coordinates), shape), return_inverse=True)
    summed = np.zeros(len(positions))
    np.add.at(summed, inverse, values)
    is_double = "values" in fields and fields["values"].dtype == "F64" and "coordinates" in fields
    dtype, stored = ("F64", summed) if is_double else ("F32", summed.astype("<f4"))
    index, encoded = encode_indices(positions, shape)
    stats = {"nnz": len(positions), "fro": float(np.linalg.norm(summed))}
    return StoredTerm("sparse", shape, {"val": (dtype, stored), **encoded}, 1.0, {"index": index}, stats)


def _coordinates(where: str, fields: Mapping[str, TensorHandle], shape: tuple[int, ...]) -> Array:
    """(dimensions, n) int64 of whichever encoding this is."""
    if "coordinates" in fields:
        return as_array(fields["coordinates"]).astype(np.int64)
    if "index_steps" in fields:
        flat = np.cumsum(as_array(fields["index_steps"]).astype(np.int64))
        if flat.size and not 0 <= flat.min() <= flat.max() < prod(shape):
            raise InvalidPatch(f"{where}: positions reach from {flat.min()} to {flat.max()}, outside {shape}")
        return np.array(np.unravel_index(flat, shape, order="F")).reshape(len(shape), -1)
    lists = [fields.get(f"indices{_JOINT}{number}") for number in range(len(shape))]
    if len(shape) == 1 and "indices" in fields:
        lists = [fields["indices"]]
    if "indices" in fields and len(fields["indices"].shape) == 2:
        return as_array(fields["indices"]).astype(np.int64)
    if any(one is not None for one in lists):
        found = [as_array(one).astype(np.int64) for one in lists if one is not None]
        if len(found) == len(shape) and len({one.shape for one in found}) == 1:
            return np.stack(found)
        raise InvalidPatch(f"{where}: its lists of indices are not one a dimension of {shape}, all equally long")
    if "values" in fields and fields["values"].numel:
        raise InvalidPatch(f"{where}: has values and no index_steps, indices or coordinates")
    return np.zeros((len(shape), 0), np.int64)


# ---- BitDelta --------------------------------------------------------------------------------------------------------


def _is_bitdelta(tensors: Tensors) -> bool:
    return any(name.endswith(".mask") and name.removesuffix("mask") + "coeff" in tensors for name in tensors)


def _bitdelta(file: str, tensors: Tensors) -> Terms:
    sites: Terms = {}
    ends = {".mask": ".coeff", ".A": ".B"}
    for name, handle in tensors.items():
        module, dot, last = name.rpartition(".")
        other = ends.get(dot + last)
        if other is not None and module + other in tensors:
            make = _signs if last == "mask" else _product
            sites[f"{module}.weight"] = make(f"{file}: {module[:200]}", handle, tensors[module + other])
        elif not any(dot + last == second and module + first in tensors for first, second in ends.items()):
            if _JOINT in name or handle.dtype not in ("F16", "BF16", "F32", "F64"):
                raise InvalidPatch(f"{file}: {name[:200]} is {handle.dtype}, and no part of a BitDelta")
            if name in sites:
                raise InvalidPatch(f"{file}: {name[:200]} is both replaced and changed")
            sites[name] = _replacing(handle)
    return sites


def _signs(where: str, mask: TensorHandle, coeff: TensorHandle) -> StoredTerm:
    if mask.dtype != "I32" or len(mask.shape) != 2 or coeff.numel != 1:
        raise InvalidPatch(
            f"{where}: mask is {mask.dtype} {mask.shape} and coeff {coeff.shape}; I32 (in/32, out) and 1"
        )
    words = np.ascontiguousarray(as_array(mask).T)  # (out, in/32)
    shape = (words.shape[0], 32 * words.shape[1])
    selected = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)  # (out, in)
    scale = float(as_floats(coeff).reshape(-1)[0])
    if not np.isfinite(scale):
        raise InvalidPatch(f"{where}: coeff is {scale}")
    bits = pack_bits(selected if scale >= 0 else ~selected)
    fields = {"sign": ("U8", bits[None]), "scale": ("F32", np.full((1, 1, 1), abs(scale), "<f4"))}
    return StoredTerm("signs", shape, fields, stats={"fro": abs(scale) * prod(shape) ** 0.5})


def _product(where: str, A: TensorHandle, B: TensorHandle) -> StoredTerm:
    """W + (A·B)ᵀ as a lowrank term."""
    if len(A.shape) != 2 or len(B.shape) != 2 or A.shape[1] != B.shape[0]:
        raise InvalidPatch(f"{where}: A is {A.shape} and B {B.shape}; (in, r) and (r, out) are expected")
    left, right = (np.ascontiguousarray(as_floats(one).T.astype("<f4")) for one in (B, A))
    return StoredTerm("lowrank", (left.shape[0], right.shape[1]), {"A": ("F32", right), "B": ("F32", left)})


_FORMATS: Mapping[str, tuple[Callable[[Tensors], bool], Callable[[str, Tensors], Any]]] = {
    "LT-SFT": (_is_lt_sft, _lt_sft),
    "BitDelta": (_is_bitdelta, _bitdelta),
}
