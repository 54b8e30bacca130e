"""A patch in another form, on the user's own machine, with the error of each module: a LoRA, or a dense patch.

`to_kind` writes what has exact low-rank factors as peft, diffusers, kohya's scripts or llama.cpp load it, `to_dense`
what folds at all as a native patch against one base. Both read back what they wrote, or what they were about to, and
compare it with the patch in float64. A delta that depends on the base's values is taken at this base, and belongs to it
from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.merging import patches
from adapterhub.merging.effects import effects, read
from adapterhub.merging.engine import write_export
from adapterhub.merging.errors import InvalidPatch, NotFoldable, NotRepresentable
from adapterhub.merging.fingerprint import ALGORITHM, parameter_digests
from adapterhub.merging.folders import LocalFolder, file_digest
from adapterhub.merging.forms import forms_of
from adapterhub.merging.native import MANIFEST, WEIGHTS, StoredTerm, write_patch
from adapterhub.merging.ops.tensors import as_matrix, is_floating
from adapterhub.merging.patch import NOT_FOLDABLE
from adapterhub.merging.patches.lora import read_with_initial
from adapterhub.merging.replicas import replicated
from adapterhub.merging.results import ResultFolder
from adapterhub.merging.site_deltas import SiteDelta, site_deltas
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from adapterhub.merging.checkpoint import Checkpoint
    from adapterhub.merging.folders import Folder
    from adapterhub.merging.patch import Patch

EXACT = 2e-6
"""Largest ‖written - read‖/‖read‖ of a module's delta that counts as exact: rounding of sums of float32 numbers."""


@dataclass(frozen=True)
class Conversion:
    """What was written. errors: ‖written - read‖/‖read‖ of the delta by site, 0 where both are zero."""

    kind: str
    form: str
    errors: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        largest = max(self.errors.values(), default=0.0)
        return {
            "from": self.kind,
            "to": self.form,
            "is_exact": largest <= EXACT,
            "largest_error": largest,
            "sites": dict(self.errors),
        }


def read_patch(folder: Folder, path: str, base: Checkpoint | None, initial: Folder | None = None) -> Patch:
    """The patch to convert; with `initial`, less what its adapter was before training. Raises what `read` raises."""
    facts = [one for one in patches.inspect(folder) if one.path == path]
    if initial is not None:
        return read_with_initial(folder, path, initial, "", base)
    if not facts:
        raise InvalidPatch(f"{path or 'the root folder'}: no patch of a known kind lies here")
    at_run_time = f"{facts[0].reason}: a {facts[0].kind} works at run time, and has no form as weights"
    if facts[0].effect == "runtime" and patches.kinds()[facts[0].kind].folds == "no":
        raise NotFoldable(at_run_time)
    found = patches.read(folder, path, base=base)
    if found.facts.effect == "runtime" and base is not None:
        raise NotFoldable(f"{at_run_time}: {found.facts.detail[NOT_FOLDABLE]}")
    if not found.terms:
        raise InvalidPatch(f"{facts[0].reason}: changes no parameter without its base; name it with --base FOLDER")
    return found


def check_form(patch: Patch, form: str) -> None:
    """Raises NotRepresentable where patches of this kind have no such form, with those that they have."""
    found = forms_of(patches.kinds()[patch.facts.kind])
    if form not in found:
        raise NotRepresentable(f"a {patch.facts.kind} has no exact form as {form}; it converts to {', '.join(found)}")


def to_kind(patch: Patch, out: Path, kind: str, base: Checkpoint | None, base_name: str) -> Conversion:
    """Write a patch of exact low-rank terms as one of a kind that is written, into `out`: empty, or not yet there.

    base_name: what the adapter calls its base. Raises NotRepresentable for other terms, NonFinite, FileExistsError.
    """
    spec = patches.kinds()[kind]
    assert spec.export is not None  # one of `forms.written`
    errors: dict[str, float] = {}
    base = replicated(base, patch.layer_ranges) if base is not None else None

    def compare(written: Path) -> Mapping[str, bytes]:
        again = site_deltas(spec.read(LocalFolder(written), "", base))
        for site, delta in site_deltas(patch).items():
            W = stand_in(delta) if base is None else read(base.tensors[delta.stored]).double()
            errors[site] = relative_error(again[site].dense(W), delta.dense(W))
        return {}

    write_export(spec.export([(1.0, patch)], base_name, base), out, compare)
    return Conversion(patch.facts.kind, kind, errors)


def to_dense(patch: Patch, out: Path, base: Checkpoint) -> Conversion:
    """Write a patch as a native one that adds a dense float32 delta to each parameter of `base` that it changes.

    The delta is what the patch does at this base, computed in float64. Raises NotRepresentable for parameters that
    the base does not store, NotFoldable for one stored as no float, FileExistsError.
    """
    if patch.layer_ranges:
        raise NotRepresentable(
            f"{patch.facts.reason}: it repeats layers of its base (layer_replication), and a dense patch adds to the "
            "parameters that are there; merge it, and use the longer model as a base"
        )
    sites: dict[str, StoredTerm] = {}
    errors: dict[str, float] = {}
    for site, delta in site_deltas(patch).items():
        _check_stored(delta, base)
        exact = _change(delta, base)
        rounded = exact.float().contiguous()
        errors[site] = relative_error(rounded, exact)
        fro = float(exact.norm())
        sites[site] = StoredTerm("dense", tuple(rounded.shape), {"delta": ("F32", rounded.numpy())}, stats={"fro": fro})
    with ResultFolder(out) as folder:
        write_patch(
            folder.path,
            sites=sites,
            base=_base_entry(patch, base, sites),
            provenance={"source_format": patch.facts.kind, "parents": [patch.digest], "converter": "adapterhub"},
        )
        for name in (MANIFEST, WEIGHTS):
            written = folder.path / name
            folder.add(name, written.stat().st_size, file_digest(written))
        folder.publish()
    return Conversion(patch.facts.kind, "dense", errors)


def _base_entry(patch: Patch, base: Checkpoint, sites: Mapping[str, StoredTerm]) -> dict[str, Any]:
    found = {
        "repo_id": patch.facts.base.name,
        "revision": patch.facts.base.revision,
        "model_type": base.config.get("model_type"),
        "fingerprint": {"algo": ALGORITHM, "params": dict(parameter_digests(base, sites))},
    }
    return {key: value for key, value in found.items() if value is not None}


def _check_stored(delta: SiteDelta, base: Checkpoint) -> None:
    """Raises NotRepresentable where a delta on the base's own tensor cannot say what the patch does."""
    if delta.is_reinitialised:
        raise NotRepresentable(
            f"{delta.site}: was drawn anew before training, so its difference to the base means nothing; keep the "
            "patch as it is, which replaces the value"
        )
    if delta.site not in base.tensors:
        what = "is an output embedding that the base ties to its input" if delta.stored != delta.site else "is new"
        raise NotRepresentable(f"{delta.site}: {what}, and a dense patch changes only what the base stores")
    tied = next((term.options["tied_output"] for term in delta.terms if "tied_output" in term.options), None)
    if tied is not None:
        raise NotRepresentable(
            f"{delta.site}: the patch parts it from {tied}, to which the base ties it; merge instead"
        )


def _change(delta: SiteDelta, base: Checkpoint) -> torch.Tensor:
    """The delta at the base's values, in float64; of what stands for stored bits, the difference of the numbers."""
    W = _wide(base, delta.site)
    if not any(terms()[term.term].is_exact for term in delta.terms):
        return delta.dense(W)
    before = read(base.tensors[delta.site])
    after = before.clone()
    rows = as_matrix(after)
    effects([(1.0, term) for term in delta.terms], before).act(rows, 0, len(rows))
    return rows.reshape(after.shape).double() - W


def _wide(base: Checkpoint, site: str) -> torch.Tensor:
    if not is_floating(base.tensors[site].dtype):
        raise NotFoldable(f"{site}: the base holds it as {base.tensors[site].dtype}; dequantise the base first")
    return read(base.tensors[site]).double()


def stand_in(delta: SiteDelta) -> torch.Tensor:
    """Ones of the shape of a site whose base is not at hand: additive terms have none of them in their delta."""
    import torch

    term = delta.terms[0]
    sizes = terms()["lowrank" if term.term == "dora" else term.term].factor_sizes
    assert sizes is not None  # else it would not have been exported
    n, _, m = sizes({name: handle.shape for name, handle in term.fields.items()}, term.options)
    return torch.ones(tuple(term.options.get("shape", (n, m))), dtype=torch.float64)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm())
    return difference / size if size else difference
