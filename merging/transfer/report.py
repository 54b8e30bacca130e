"""Will a patch still work on another base? What can be told from the weights alone, and the verdict in words.

For every site, with Δ the patch's delta, W and W' the two bases and E = W' - W:
drift ‖E‖/‖W‖; drift to patch ‖E‖/‖Δ‖; overlap ‖UᵣΔᵀ UᵣE‖²/r, the share of the patch's r dominant left directions that
lie in those of the drift, less chance r/n; structured drift (‖E‖/‖Δ‖)·sqrt(max(overlap - chance, 0)), which is near
zero for noise such as quantisation however large, and grows where training moved the base along the patch's directions.

The size of the difference between the carried patch and one trained anew, against the size of the whole weight, is no
evidence (it is small for any patch, useless ones too) and is not computed. Thresholds are rules of thumb: only a
measurement of the carried patch on its task tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.merging.effects import read
from adapterhub.merging.ops.lowrank import Factors, bases
from adapterhub.merging.ops.subspaces import chance_overlap, left_directions, overlap
from adapterhub.merging.ops.tensors import as_matrix, is_floating
from adapterhub.merging.replicas import replicated
from adapterhub.merging.site_deltas import SiteDelta, site_deltas

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
    from adapterhub.merging.patch import Patch

Verdict = Literal["identical", "likely", "doubtful", "refused"]

SMALL_DRIFT = 0.02
"""Up to this ‖E‖/‖W‖ a patch is taken to carry over: that of instruct from base models."""
SMALL_STRUCTURED_DRIFT = 0.2
"""Up to this the drift is taken to pass the patch by."""
UNRELATED_DRIFT = 1.0
"""From here the two bases share nothing that the weights show; independent ones have sqrt(2)."""
CONTAINED_COSINE = 0.9
"""From this cosine of Δ and E on the new base is taken to hold the patch already."""
DIRECTIONS = 16
"""Most directions that overlaps are measured on."""
SHOWN = 20
"""Most names of parameters that a list of differences shows."""


@dataclass(frozen=True)
class SiteDrift:
    """One site. None where a measure has no meaning: no change, no delta, or a site that is no matrix."""

    site: str
    drift: float
    drift_to_patch: float | None
    overlap: float | None
    overlap_above_chance: float | None
    structured_drift: float | None
    cosine: float | None


@dataclass(frozen=True)
class Structure:
    """How the two bases differ in names, shapes and dtypes. touched: those that the patch needs and cannot have."""

    missing: tuple[str, ...]
    added: tuple[str, ...]
    reshaped: tuple[str, ...]
    recast: int
    touched: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The verdict on a port, why, and the measurements. `sites` is empty where the source base was not at hand.

    drift, drift_to_patch: over all sites together; overlap_above_chance, structured_drift: means over sites.
    """

    verdict: Verdict
    sentence: str
    reasons: tuple[str, ...]
    structure: Structure
    sites: tuple[SiteDrift, ...] = ()
    drift: float | None = None
    drift_to_patch: float | None = None
    overlap_above_chance: float | None = None
    structured_drift: float | None = None

    def as_json(self) -> Mapping[str, Any]:
        """The report as JSON values; lists of parameter names are cut at SHOWN, with their length beside them."""
        values = asdict(self)
        for name in ("missing", "added", "reshaped"):
            names = values["structure"][name]
            values["structure"][name] = {"count": len(names), "names": list(names[:SHOWN])}
        return values


def portability(patch: Patch, source: Checkpoint | None, target: Checkpoint) -> Report:
    """The report on carrying a patch from the base it was trained on to another.

    patch: read with either base. source: None where it is not at hand; then only structure is compared. Bases are read
    once, two tensors at a time.
    """
    target = replicated(target, patch.layer_ranges)
    source = replicated(source, patch.layer_ranges) if source is not None else None
    found = [one for one in site_deltas(patch).values() if not one.is_created]
    whole = [one for one in found if _is_kept_whole(one, source)]
    deltas = [one for one in found if one not in whole]
    structure = _structure(deltas, whole, source, target)
    if structure.touched:
        return _refusal(structure, structure.touched)
    kept = _kept_whole(whole)
    if whole and not deltas:
        return Report("doubtful", f"Doubtful: {kept[0]}; nothing could be measured.", tuple(kept), structure)
    if source is None:
        reason = "the base that the patch was trained on is not at hand, so nothing could be measured"
        sentence = f"Doubtful: every site is there in its shape, but {reason}."
        return Report("doubtful", sentence, (reason,), structure)
    measured = [_measure(one, source.tensors[one.stored], target.tensors[one.stored]) for one in deltas]
    if all(one.error == 0.0 for one in measured) and _is_same(source, target):
        sentence = "Identical: every parameter of the two bases is equal; the port is exact."
        return Report("identical", sentence, (), structure, tuple(one.row() for one in measured), 0.0, 0.0)
    return _judge(structure, measured, kept)


def _is_kept_whole(one: SiteDelta, source: Checkpoint | None) -> bool:
    """Whether a site's value did not start from the base's: drawn anew, or new beside the base it was trained on."""
    return one.is_reinitialised or (one.replaces and source is not None and one.stored not in source.tensors)


def _kept_whole(whole: Sequence[SiteDelta]) -> list[str]:
    if not whole:
        return []
    return [
        f"{len(whole)} parameters, {whole[0].site} first, were drawn anew before training and replace the new base's"
    ]


# ---- structure -------------------------------------------------------------------------------------------------------


def _structure(
    deltas: Sequence[SiteDelta], whole: Sequence[SiteDelta], source: Checkpoint | None, target: Checkpoint
) -> Structure:
    after = target.tensors
    before = source.tensors if source is not None else after
    common = before.keys() & after.keys()
    obstacles = [_obstacle(one, before, after) for one in deltas]
    obstacles += [_obstacle(one, {one.stored: _value(one)}, after) for one in whole]
    reshaped = sorted(name for name in common if before[name].shape != after[name].shape)
    return Structure(
        missing=tuple(sorted(before.keys() - after.keys())),
        added=tuple(sorted(after.keys() - before.keys())),
        reshaped=tuple(f"{name}: {before[name].shape} to {after[name].shape}" for name in reshaped),
        recast=sum(before[name].dtype != after[name].dtype for name in common),
        touched=tuple(filter(None, obstacles)),
    )


def _value(one: SiteDelta) -> TensorHandle:
    return next(term.fields["value"] for term in one.terms if term.term == "replace")


def _obstacle(one: SiteDelta, before: Mapping[str, TensorHandle], after: Mapping[str, TensorHandle]) -> str:
    """Why the patch's delta at a site cannot be added to the new base, "" where it can."""
    name = one.stored
    if name not in after:
        return f"{name} is not in the new base"
    if name not in before:
        return f"{name} is not in the base that the patch is said to be trained on"
    if before[name].shape != after[name].shape:
        return f"{name} is {after[name].shape} in the new base, {before[name].shape} in the old one"
    if not is_floating(after[name].dtype):
        return f"{name} is quantised ({after[name].dtype}) in the new base"
    return ""


def _is_same(source: Checkpoint, target: Checkpoint) -> bool:
    """Whether the bases have the same parameters, byte for byte. Stops at the first difference."""
    if source.tensors != target.tensors:  # names, dtypes and shapes
        return False
    return all(source.tensors[name].read() == target.tensors[name].read() for name in source.tensors)


# ---- measures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Norms and directions of one site; row() derives the ratios."""

    site: str
    weight: float
    error: float
    delta: float
    inner: float
    overlap: float | None
    chance: float | None
    is_recast: bool
    resolution: float | None

    def row(self) -> SiteDrift:
        to_patch = self.error / self.delta if self.delta else None
        above = self.overlap - self.chance if self.overlap is not None and self.chance is not None else None
        return SiteDrift(
            site=self.site,
            drift=self.error / self.weight if self.weight else 0.0,
            drift_to_patch=to_patch,
            overlap=self.overlap,
            overlap_above_chance=above,
            structured_drift=to_patch * math.sqrt(max(above, 0.0))
            if to_patch is not None and above is not None
            else None,
            cosine=self.inner / (self.error * self.delta) if self.error and self.delta else None,
        )


def _measure(site: SiteDelta, source: TensorHandle, target: TensorHandle) -> _Measured:
    import torch

    stored, W_new = read(source), read(target)
    W = stored.float()
    E = W_new.float() - W
    factors = site.factors()
    D = as_matrix(site.dense(W)) if factors is None else factors.left @ factors.right
    error, delta = float(E.double().norm()), float(D.double().norm())
    shared, chance = (
        (None, None) if min(E.dim(), 2) < 2 or not error or not delta else _overlap(factors, D, as_matrix(E))
    )
    return _Measured(
        site=site.site,
        weight=float(W.double().norm()),
        error=error,
        delta=delta,
        inner=float((as_matrix(E).double() * D.double()).sum()),
        overlap=shared,
        chance=chance,
        is_recast=source.dtype != target.dtype and torch.equal(stored.to(W_new.dtype), W_new),
        resolution=_resolution(D, W_new),
    )


def _overlap(factors: Factors | None, D: torch.Tensor, E: torch.Tensor) -> tuple[float, float]:
    """(overlap of the delta's dominant left directions with the drift's, what chance would give)."""
    ours = left_directions(D, DIRECTIONS) if factors is None else bases(factors)[0][:, :DIRECTIONS]
    theirs = left_directions(E, ours.shape[1])
    return overlap(ours, theirs), chance_overlap(D.shape[0], theirs.shape[1])


def _resolution(D: torch.Tensor, W: torch.Tensor) -> float | None:
    """Root mean square of the delta in units of the last place of a typical weight; None for an empty site."""
    import torch

    typical = float(W.float().square().mean().sqrt()) if W.numel() else 0.0
    return float(D.square().mean().sqrt()) / (typical * torch.finfo(W.dtype).eps) if typical else None


# ---- verdict ---------------------------------------------------------------------------------------------------------


def _refusal(structure: Structure, reasons: Sequence[str]) -> Report:
    more = f", and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    sentence = f"Refused: {'; '.join(reasons[:3])}{more}."
    return Report("refused", sentence, tuple(reasons), structure)


def _judge(structure: Structure, measured: Sequence[_Measured], kept: Sequence[str]) -> Report:
    rows = tuple(one.row() for one in measured)
    weight, error, delta = (
        math.hypot(*(getattr(one, name) for one in measured)) for name in ("weight", "error", "delta")
    )
    drift = error / weight if weight else 0.0
    to_patch = error / delta if delta else None
    structured = _mean([row.structured_drift for row in rows])
    cosine = sum(one.inner for one in measured) / (error * delta) if error and delta else 0.0
    verdict, reasons = _verdict(drift, structured, cosine, all(one.is_recast or not one.error for one in measured))
    reasons += [*kept, *_notes(structure, measured)]
    sentence = f"{verdict.capitalize()}: {'; '.join(reasons)}."
    above = _mean([row.overlap_above_chance for row in rows])
    return Report(verdict, sentence, tuple(reasons), structure, rows, drift, to_patch, above, structured)


def _verdict(drift: float, structured: float | None, cosine: float, is_recast: bool) -> tuple[Verdict, list[str]]:
    moved = f"the patched parameters moved by {drift:.1%} of their size"
    if cosine >= CONTAINED_COSINE:
        return "refused", [
            f"the new base moved along the patch itself (cosine {cosine:.2f}): it holds the patch already"
        ]
    if drift >= UNRELATED_DRIFT:
        return "doubtful", [f"{moved}: the bases look unrelated, or their units were reordered"]
    if drift == 0.0:
        return "likely", ["the patched parameters are equal in both bases, others are not"]
    if is_recast:
        return "likely", ["the new base is the old one in another number format"]
    if drift <= SMALL_DRIFT:
        return "likely", [moved]
    if structured is not None and structured <= SMALL_STRUCTURED_DRIFT:
        return "likely", [f"{moved}, hardly along the patch's directions (structured drift {structured:.2f})"]
    along = f", along the patch's directions (structured drift {structured:.2f})" if structured is not None else ""
    return "doubtful", [moved + along]


def _notes(structure: Structure, measured: Sequence[_Measured]) -> list[str]:
    notes = []
    changed = len(structure.missing) + len(structure.added) + len(structure.reshaped)
    if changed:
        notes.append(f"{changed} parameters that the patch does not touch are new, gone or of another shape")
    weak = sum(one.resolution is not None and one.resolution < 0.5 for one in measured)
    if weak:
        notes.append(
            f"at {weak} of {len(measured)} sites the delta is below half the base's last digit: "
            "folding would lose most of it, serve the patch beside the base instead"
        )
    return notes


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
