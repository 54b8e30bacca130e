"""Graft masks as their trainer pickles them, made into native patches of kind mask: W + γ ⊙ (W_ft - W).

The pickle is a list of logits S, one tensor a trained parameter, without names. What it leaves unsaid comes beside it:
`names` of the parameters in the list's order (that of the trainer's `named_parameters`), `sigmoid_bias`, and `density`,
the share of entries that moved most, from which the mask started: γ = round(s + (1 - 2s) · σ(S - sigmoid_bias)) with
s = 1 for those entries. Logits as they began, far below the bias, leave γ = s.

Source: arXiv:2302.06600; abhishekpanigrahi1996/Skill-Localization-by-grafting src/graft_trainer.py, interpolate_model
and create_basepatch. Differs: movements of parameters in 16 bits are compared in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.merging import native, pickles
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch, UnknownSite
from adapterhub.merging.fingerprint import ALGORITHM, fingerprint
from adapterhub.merging.folders import file_digest, read_json
from adapterhub.merging.native import MANIFEST, WEIGHTS
from adapterhub.merging.results import ResultFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
    from adapterhub.merging.folders import Folder


@dataclass(frozen=True)
class Graft:
    """What a pickle of logits leaves unsaid. density in [0, 1]; 0 starts from an empty mask."""

    names: tuple[str, ...]
    sigmoid_bias: float
    density: float


def read_graft(folder: Folder, name: str) -> Graft:
    """The description in a JSON file. Raises InvalidPatch for anything but names, sigmoid_bias and density."""
    said = read_json(folder, name)
    wanted = {"names", "sigmoid_bias", "density"}
    if said.keys() != wanted:
        raise InvalidPatch(
            f"{name}: has {', '.join(sorted(said)) or 'nothing'}; {', '.join(sorted(wanted))} are expected"
        )
    names = said["names"]
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names) or len(set(names)) != len(names):
        raise InvalidPatch(f"{name}: names is no list of different texts")
    for key, high in (("sigmoid_bias", 1e6), ("density", 1.0)):
        value = said[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (isfinite(value) and 0 <= value <= high)
        ):
            raise InvalidPatch(f"{name}: {key} is {str(value)[:80]}; a number from 0 to {high:g} is expected")
    return Graft(tuple(names), float(said["sigmoid_bias"]), float(said["density"]))


def to_native(
    folder: Folder, name: str, graft: Graft, base: Checkpoint, tuned: Checkpoint, out: Path
) -> Mapping[str, str]:
    """Write the patch into `out` and give each parameter's term; parameters without a selected entry are left out.

    Raises InvalidPatch where list and names do not fit or nothing is selected, UnknownSite, ShapeMismatch,
    FileExistsError.
    """
    with pickles.opened(folder, name) as (tensors, values, _), ResultFolder(out) as result:
        logits = _logits(name, tensors, values, graft)
        _check_fit(logits, base, tuned)
        least = _least_movement(graft, base, tuned)
        known = fingerprint(base)
        with native.PatchWriter(result.path) as writer:
            touched = {}
            for site, handle in logits.items():
                delta = _delta(site, base, tuned)
                selected = mask(as_floats(handle).reshape(delta.shape), np.abs(delta) > least, graft.sigmoid_bias)
                if selected.any():
                    writer.add(site, (native.select(selected, np.where(selected, delta, np.float32(0))),))
                    touched[site] = known.parameters[site]
            if not touched:
                raise InvalidPatch(f"{name}: selects no entry; sigmoid_bias and density are those it was trained with?")
            writer.finish(
                base={
                    "repo_id": base.name,
                    "model_type": base.config.get("model_type"),
                    "fingerprint": {"root": known.root, "algo": ALGORITHM, "params": touched},
                },
                provenance=_provenance(folder, name, graft),
            )
        for file in (MANIFEST, WEIGHTS):
            result.add(file, (result.path / file).stat().st_size, file_digest(result.path / file))
        result.publish()
    return dict.fromkeys(touched, "mask")


def mask(S: Array, started: Array, sigmoid_bias: float) -> Array:
    """γ as bool, in float32 as the trainer has it. S: logits; started: bool, the mask that training began with."""
    shifted = S.astype(np.float32) - np.float32(sigmoid_bias)
    with np.errstate(over="ignore"):
        share = np.float32(1) / (np.float32(1) + np.exp(-shifted))
    s = started.astype(np.float32)
    chosen: Array = np.round(s + (np.float32(1) - np.float32(2) * s) * share) == 1
    return chosen


def _provenance(folder: Folder, name: str, graft: Graft) -> dict[str, Any]:
    settings = {"sigmoid_bias": graft.sigmoid_bias, "density": graft.density}
    return {
        "source_format": "graft",
        "source_files": {name: folder.digest(name)},
        "converter": "adapterhub",
        **settings,
    }


def _logits(
    file: str, tensors: Mapping[str, TensorHandle], values: Mapping[str, Any], graft: Graft
) -> Mapping[str, TensorHandle]:
    """The list's tensors by the parameter that each belongs to."""
    numbered = {str(number) for number in range(len(tensors))}
    if values or set(tensors) != numbered:
        first = next(iter(values), None) or next(iter(sorted(set(tensors) - numbered)))
        raise InvalidPatch(f"{file}: holds {first[:200]}; a graft mask is a list of tensors")
    if len(tensors) != len(graft.names):
        raise InvalidPatch(
            f"{file}: {len(tensors)} tensors for {len(graft.names)} names; name each, in the list's order"
        )
    return {site: tensors[str(number)] for number, site in enumerate(graft.names)}


def _check_fit(logits: Mapping[str, TensorHandle], base: Checkpoint, tuned: Checkpoint) -> None:
    for site, handle in logits.items():
        for model in (base, tuned):
            if site not in model.tensors:
                raise UnknownSite(site, model.name)
            if model.tensors[site].shape != handle.shape:
                raise ShapeMismatch(site, handle.shape, model.name, model.tensors[site].shape)


def _delta(site: str, base: Checkpoint, tuned: Checkpoint) -> Array:
    here, there = base.tensors[site], tuned.tensors[site]
    found: Array = (as_floats(there) - as_floats(here)).astype(np.float32).reshape(here.shape)
    return found


def _least_movement(graft: Graft, base: Checkpoint, tuned: Checkpoint) -> float:
    """What an entry must have moved more than to be in the mask from the start; infinity where none is."""
    count = int(graft.density * sum(base.tensors[site].numel for site in graft.names))
    if not count:
        return float("inf")
    return float(_largest(graft.names, count, base, tuned).min())


def _largest(names: Sequence[str], count: int, base: Checkpoint, tuned: Checkpoint) -> Array:
    """The `count` largest movements, one parameter in memory beside them."""
    best: Array = np.zeros(count, np.float32)
    for movement in _movements(names, base, tuned):
        both = np.concatenate([best, movement])
        best = np.partition(both, len(both) - count)[len(both) - count :]
    return best


def _movements(names: Sequence[str], base: Checkpoint, tuned: Checkpoint) -> Iterator[Array]:
    for site in names:
        yield np.abs(_delta(site, base, tuned)).reshape(-1)
