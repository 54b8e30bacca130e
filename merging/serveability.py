"""What of a patch an engine outside applies, tensor by tensor, and the same adapter in a form that it applies whole.

The engine's rules (`serving_rules.py`) say what each feature of the patch (`serving_features.py`) comes to. A rewrite
is exact or is not done: what has no exact low-rank form is said not to be served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adapterhub.merging import convert, patches
from adapterhub.merging.effects import read as read_tensor
from adapterhub.merging.encodings import as_array, as_floats
from adapterhub.merging.errors import NotRepresentable
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.peft_adapter import computed, floats
from adapterhub.merging.replicas import replicated
from adapterhub.merging.serving_features import EXPERT, Finding, Looked, groups, ranks, renamed
from adapterhub.merging.serving_rules import WORST, Does
from adapterhub.merging.site_deltas import SiteDelta, site_deltas
from adapterhub.merging.sites import naming

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
    from adapterhub.merging.patch import Patch, SiteTerm

Served = Literal["applied", "rewritten", "not"]


@dataclass(frozen=True)
class TensorVerdict:
    """What becomes of one tensor. as_is: what the engine does with it in the files as they are."""

    tensor: str
    verdict: Served
    as_is: Does
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What an engine makes of a patch.

    verdict: "as is", "after a rewrite" or "not". as_is: what it does with the files as they are. doubts: what is not
    sure. options: what the engine has to be started with. rank: the largest of a module's, None where it is no LoRA.
    """

    engine: str
    version: str
    verdict: Literal["as is", "after a rewrite", "not"]
    as_is: Does
    rank: int | None
    options: tuple[str, ...]
    doubts: tuple[str, ...]
    tensors: tuple[TensorVerdict, ...]

    @property
    def lost(self) -> TensorVerdict | None:
        """The first tensor that the engine does not serve in any form."""
        return next((one for one in self.tensors if one.verdict == "not"), None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def judge(found: Looked) -> Verdict:
    """What the engine makes of a patch that was looked at."""
    of_tensor: dict[str, list[Finding]] = {name: [] for name in found.tensors}
    for one in found.findings:
        of_tensor.setdefault(one.tensor, []).append(one)
    rows = tuple(_of_tensor(name, findings, found) for name, findings in sorted(of_tensor.items()))
    verdicts = {one.verdict for one in rows}
    did = {one.as_is for one in rows}
    rank = max(ranks(found).values(), default=found.facts.rank_max)
    doubts = [found.engine.doubt(found.version)]
    if found.base is None:
        doubts.append("without --base the names of modules are not held against a model's")
    return Verdict(
        engine=found.engine.name,
        version=found.version,
        verdict="not" if "not" in verdicts else "after a rewrite" if "rewritten" in verdicts else "as is",
        as_is="refuses" if "refuses" in did else max(did, key=WORST.index, default="applies"),
        rank=rank,
        options=tuple(found.engine.options(rank or 1)) if "not" not in verdicts else (),
        doubts=tuple(one for one in doubts if one),
        tensors=rows,
    )


def _of_tensor(name: str, findings: Sequence[Finding], found: Looked) -> TensorVerdict:
    told: list[tuple[Finding, Does, str]] = []
    for one in findings:
        rule = found.engine.rule(one.feature, found.version)
        if rule is not None and not (rule.does == "applies" or (rule.does == "ignores" and one.is_idle)):
            told.append((one, rule.does, one.detail or rule.why))
    if not told:
        return TensorVerdict(name, "applied", "applies")
    did = {does for _, does, _ in told}
    as_is: Does = "refuses" if "refuses" in did else max(did, key=WORST.index)
    why_not = [why for one, _, why in told if not one.rewrite]
    if why_not:
        return TensorVerdict(name, "not", as_is, why_not[0])
    rewrites = list(dict.fromkeys(one.rewrite for one, _, _ in told))
    return TensorVerdict(name, "rewritten", as_is, "; ".join(rewrites))


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(found: Looked, verdict: Verdict, out: Path) -> convert.Conversion:
    """Write the equivalent adapter, which the engine applies whole, into `out`: empty, or not yet there.

    Its deltas are compared with the patch's, both folded in float64. Raises NotRepresentable where something of the
    patch would be left out, FileExistsError.
    """
    lost = verdict.lost
    if lost is not None or found.patch is None:
        what = f"{lost.tensor}: {lost.why}" if lost else found.refusal
        raise NotRepresentable(f"{found.engine.title} does not serve all of this patch, so nothing is written: {what}")
    called = renamed(found)
    kept = tuple(_called(one, called) for one in found.kept)
    patch = replace(found.patch, terms=kept)
    base_name = found.facts.base.name or (found.base.name if found.base else "")
    if found.engine.form != "lora":
        convert.to_kind(patch, out, found.engine.form, found.base, base_name)
    else:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".adapterhub-serveable-", dir=out.absolute().parent) as place:
            plain = Path(place) / "plain"
            convert.to_kind(patch, plain, "lora", found.base, base_name)
            fitted = _fitted(patches.read(LocalFolder(plain), base=found.base), found)
            convert.to_kind(fitted, out, "lora", found.base, base_name)
    written = patches.kinds()[found.engine.form].read(LocalFolder(out), "", found.base)
    return convert.Conversion(found.facts.kind, found.engine.form, _errors(found.patch, written, found.base))


def _called(term: SiteTerm, called: Mapping[str, str]) -> SiteTerm:
    module = str(term.options.get("module"))
    return replace(term, options={**term.options, "module": called[module]}) if module in called else term


def _fitted(patch: Patch, found: Looked) -> Patch:
    """One plain term a module as the engine takes them: of one rank, of one scale, and none of a group left out."""
    engine, version = found.engine, found.version
    made = list(patch.terms)
    r = max(one.fields["A"].shape[0] for one in made)
    scales = {one.scale for one in made}
    if engine.rule("rank_pattern", version) is not None:
        made = [_padded(one, r) for one in made]
    if engine.rule("alpha_pattern", version) is not None and len(scales) > 1:
        made = [_unscaled(one) for one in made]
    here = {str(one.options["module"]): one for one in made}
    for _, members in groups(engine, here, found.base):
        made += [_zeros(one, here, found.base) for one in members if one not in here and found.base is not None]
    return replace(patch, terms=tuple(sorted(made, key=lambda one: one.site)))


def _padded(term: SiteTerm, r: int) -> SiteTerm:
    """The term with further ranks that are zero."""
    A, B = term.fields["A"], term.fields["B"]
    more = r - A.shape[0]
    if not more:
        return term

    def widened(handle: TensorHandle, axis: int) -> TensorHandle:
        sizes = [(0, more if number == axis else 0) for number in range(len(handle.shape))]
        shape = tuple(size + sizes[number][1] for number, size in enumerate(handle.shape))
        return computed(handle.name, handle.dtype, shape, lambda: np.pad(as_array(handle), sizes))

    return replace(term, fields={"A": widened(A, 0), "B": widened(B, 1)})


def _unscaled(term: SiteTerm) -> SiteTerm:
    """The term with its scale in B, in float32."""
    B, scale = term.fields["B"], term.scale
    if scale == 1.0:
        return term
    return replace(term, scale=1.0, fields={**term.fields, "B": floats(B.name, B.shape, lambda: as_floats(B) * scale)})


def _zeros(module: str, here: Mapping[str, SiteTerm], base: Checkpoint | None) -> SiteTerm:
    """A term of a module that adds nothing, beside its sisters that are here."""
    assert base is not None  # its sizes are the base's
    sister = next(
        term
        for name, term in sorted(here.items())
        if name.rpartition(".")[0] == module.rpartition(".")[0] or _owner(name) == _owner(module)
    )
    site = naming([f"{module}.weight"], base).site(f"{module}.weight")
    out, fan_in = base.tensors[site].shape
    rank = sister.fields["A"].shape[0]
    shapes = {"A": (rank, fan_in), "B": (out, rank)}
    fields = {name: floats(f"{module}.{name}", shape, _nothing(shape)) for name, shape in shapes.items()}
    return replace(sister, site=site, fields=fields, options={**sister.options, "module": module})


def _owner(module: str) -> str:
    found = EXPERT.fullmatch(module)
    return found[1] if found else module


def _nothing(shape: tuple[int, ...]) -> Any:
    return lambda: np.zeros(shape)


def _errors(patch: Patch, written: Patch, base: Checkpoint | None) -> Mapping[str, float]:
    """‖written - patch‖/‖patch‖ of the deltas by site, in float64; a site of one alone is zero in the other."""
    base = replicated(base, patch.layer_ranges) if base is not None else None
    before, after = site_deltas(patch), site_deltas(written)
    errors = {}
    for site in sorted({*before, *after}):
        one = before.get(site) or after[site]
        W = convert.stand_in(one) if base is None else read_tensor(base.tensors[one.stored]).double()
        errors[site] = convert.relative_error(_dense(after.get(site), W), _dense(before.get(site), W))
    return errors


def _dense(delta: SiteDelta | None, W: Any) -> Any:
    return delta.dense(W) if delta is not None else W * 0
