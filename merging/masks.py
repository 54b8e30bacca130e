"""Several tasks' deltas as one shared delta and a mask for each task: one folder of native patches.

`shared` holds the unified delta; each task's folder a `mask` patch that takes it by digest. `base + folder/task` is
then the task's own reconstruction. One parameter is held in memory at a time; it is gone through twice, once for the
shared delta and the sums that scales need, once for the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.merging import fold, native
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, NotRepresentable
from adapterhub.merging.fingerprint import ALGORITHM, fingerprint
from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.ops.task_masks import emr_mask, tall_mask, unify

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.plan import Plan
    from adapterhub.merging.steps import OutputTensor

SHARED = "shared"
"""Folder of the unified delta."""


@dataclass(frozen=True)
class Masking:
    """One way to share a delta. unify: of the tasks' deltas, one. select: where it counts for a task's delta.

    is_scaled: whether a task's reconstruction is scaled to the L1 norm of its delta, all parameters together.
    """

    unify: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    select: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    is_scaled: bool


@dataclass
class Task:
    """What became of one task. l1, error: of the whole delta; error: ‖Δ - what is stored‖ / ‖Δ‖, in float64.

    selected: share of the entries of all parameters that count for it. digest: of its patch.
    """

    name: str
    l1: float = 0.0
    covered: float = 0.0
    scale: float = 1.0
    selected: float = 0.0
    error: float = 0.0
    digest: str = ""
    _squares: list[float] = field(default_factory=lambda: [0.0, 0.0], repr=False)

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}


def masking(name: str, *, tall: float = 0.6) -> Masking:
    """EMR or TALL masks. tall: λ of TALL, 0 or more. Raises InvalidParameter."""
    if name == "emr":
        return Masking(unify, emr_mask, is_scaled=True)
    if name != "tall":
        raise InvalidParameter(f"{name}: no such masks; one of emr or tall")
    if not 0 <= tall < float("inf"):
        raise InvalidParameter(f"tall is {tall}; a number from 0 is expected")
    return Masking(_sum, partial(tall_mask, factor=tall), is_scaled=False)


def _sum(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    return weighted_sum(deltas, [1.0] * len(deltas))


def write_masks(plans: Mapping[str, Plan], how: Masking, out: Path, method: str) -> list[Task]:
    """Write the shared delta and the masks of tasks into the folder `out`; what became of each task.

    plans: by the task's name, of base + that task. Raises NotRepresentable for a task that brings parameters of its
    own, InvalidPatch where nothing is changed, NonFinite, NotFoldable.
    """
    sites = _sites(plans)
    tasks = {name: Task(name) for name in plans}
    base = _base(plans, sites)
    with native.PatchWriter(out / SHARED) as writer:
        for site in sites:
            deltas = _deltas(plans, site)
            unified = how.unify(list(deltas.values())).float()
            writer.add(site, (native.term("dense", unified.shape, delta=unified.numpy()),))
            for name, delta in deltas.items():
                selected = how.select(delta, unified)
                tasks[name].l1 += float(delta.double().abs().sum())
                tasks[name].covered += float(unified.double()[selected].abs().sum())
        made = {"made_by": method, "tasks": list(plans)}
        shared = writer.finish(base=base, provenance=made)
    for one in tasks.values():
        one.scale = one.l1 / one.covered if how.is_scaled and one.covered else 1.0
    _write_tasks(plans, how, out, sites, tasks, {"delta_ref": shared, "base": base, "provenance": made})
    return list(tasks.values())


def card(expression: str, method: str, tasks: Sequence[Task], tall: float) -> str:
    """The README.md of the folder: what lies in it and how a task is had back."""
    told = f"{method}, λ = {tall:g}" if method == "tall" else method
    rows = [f"| `{one.name}` | {one.selected:.2%} | {one.scale:.6g} | {one.error:.4g} |" for one in tasks]
    lines = [
        "# Tasks that share one delta",
        "",
        f"Made by adapterhub ({told}) from",
        "",
        f"    {expression}",
        "",
        f"`{SHARED}` holds the delta; each task is a mask that takes it: add `THIS/{tasks[0].name}` to the base.",
        "",
        "| task | entries that count | scale | error |",
        "|---|---|---|---|",
        *rows,
        "",
        "error: what the task's own delta lost, as a share of its norm.",
        "",
    ]
    return "\n".join(lines)


def _write_tasks(
    plans: Mapping[str, Plan],
    how: Masking,
    out: Path,
    sites: Sequence[str],
    tasks: Mapping[str, Task],
    said: Mapping[str, Any],
) -> None:
    """One writer a task, all open at once, so that each parameter's deltas are made once for all of them."""
    writers = {name: native.PatchWriter(out / name) for name in plans}
    entries = 0
    try:
        for site in sites:
            deltas = _deltas(plans, site)
            unified = how.unify(list(deltas.values())).float()
            entries += unified.numel()
            for name, delta in deltas.items():
                term = _mask(tasks[name], how.select(delta, unified), delta, unified, said["delta_ref"])
                writers[name].add(site, (term,))
        for name, writer in writers.items():
            one = tasks[name]
            one.selected /= entries
            one.error = (one._squares[0] / one._squares[1]) ** 0.5 if one._squares[1] else 0.0
            one.digest = writer.finish(base=said["base"], provenance={**said["provenance"], "task": name})
    finally:
        for writer in writers.values():
            writer.__exit__()


def _mask(
    task: Task, selected: torch.Tensor, delta: torch.Tensor, unified: torch.Tensor, shared: str
) -> native.StoredTerm:
    rebuilt = unified.double() * selected * task.scale
    task.selected += int(selected.sum())
    task._squares[0] += float((rebuilt - delta.double()).square().sum())
    task._squares[1] += float(delta.double().square().sum())
    bits = native.prune(selected.numpy()).fields["bits"]
    stats = {"nnz": int(selected.sum()), "fro": float(rebuilt.norm())}
    options = {"mode": "select"}
    return native.term(
        "mask", selected.shape, scale=task.scale, options=options, stats=stats, delta_ref=shared, bits=bits
    )


def _sites(plans: Mapping[str, Plan]) -> list[str]:
    if len(plans) != len({name.casefold() for name in plans}) or SHARED in plans:
        names = ", ".join(plans)
        raise InvalidParameter(
            f"the tasks are {names}: each is a folder beside {SHARED!r}, and takes a name of its own"
        )
    found: set[str] = set()
    for name, plan in plans.items():
        stored = plan.base.tensors
        for output in plan.outputs:
            if output.name not in stored:
                raise NotRepresentable(
                    f"{name}: brings {output.name}, which {plan.base.name!r} does not have, such as a head of its own; "
                    "masks share what all tasks change, so leave it out of the patch and keep it beside the task"
                )
        found |= plan.touched
    if not found:
        raise InvalidPatch("the tasks change nothing of the base; there is nothing to share")
    return sorted(found)


def _deltas(plans: Mapping[str, Plan], site: str) -> Mapping[str, torch.Tensor]:
    return {name: fold.change(_output(plan.outputs, site)) for name, plan in plans.items()}


def _output(outputs: Iterable[OutputTensor], site: str) -> OutputTensor:
    return next(output for output in outputs if output.name == site)


def _base(plans: Mapping[str, Plan], sites: Sequence[str]) -> dict[str, Any]:
    base = next(iter(plans.values())).base
    known, (name, _, revision) = fingerprint(base), base.name.partition("@")
    touched = {site: known.parameters[site] for site in sites}
    return {
        "repo_id": name,
        **({"revision": revision} if revision else {}),
        "model_type": base.config.get("model_type"),
        "fingerprint": {"root": known.root, "algo": ALGORITHM, "params": touched},
    }
