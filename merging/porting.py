"""Carries a patch to another base: a report first, then the files, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.merging.errors import BaseMismatch, InvalidParameter
from adapterhub.merging.patch import TrainingBase
from adapterhub.merging.patches import kinds
from adapterhub.merging.results import ResultFile, ResultFolder
from adapterhub.merging.transfer import Port, strategies
from adapterhub.merging.transfer.report import Report, portability

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint, Folder
    from adapterhub.merging.patch import Patch


@dataclass(frozen=True)
class PortResult:
    """What a port wrote, sorted by name, and what is to be thought of it."""

    files: Sequence[ResultFile]
    report: Report


def port(
    patch: Patch,
    folder: Folder,
    source: Checkpoint | None,
    target: Checkpoint,
    *,
    out: Path,
    base: TrainingBase,
    strategy: str = "direct",
) -> PortResult:
    """Write the patch for another base into the folder `out`, with port.json and a card.

    patch: read from `folder` with either base. source: the base it was trained on, None where it is not at hand.
    base: what the patch is to call its new base: name, revision and, where known, fingerprint. out: must not exist or
    be empty; it is there complete when this returns, and untouched when it raises.
    Raises BaseMismatch where the report refuses, InvalidParameter for an unknown strategy, FileExistsError.
    """
    if strategy not in strategies():
        raise InvalidParameter(f"{strategy}: no such strategy; known are {', '.join(strategies())}")
    report = portability(patch, source, target)
    if report.verdict == "refused":
        raise BaseMismatch(f"port to {base.name or target.name}: {report.sentence}")
    rebase = kinds()[patch.facts.kind].rebase
    renamed = rebase(folder, patch.facts.path, base) if rebase is not None else {}
    with ResultFolder(out) as result:
        strategies()[strategy].function(Port(patch, folder, renamed, source, target, result))
        result.write("port.json", (json.dumps(_record(patch, base, strategy, report), indent=2) + "\n").encode())
        result.write("README.md", _card(patch, base, strategy, report).encode())
        return PortResult(result.publish(), report)


def _record(patch: Patch, base: TrainingBase, strategy: str, report: Report) -> dict[str, object]:
    before = patch.facts.base
    return {
        "strategy": strategy,
        "patch": patch.digest,
        "from": {"name": before.name, "revision": before.revision, "fingerprint": before.fingerprint},
        "to": {"name": base.name, "revision": base.revision, "fingerprint": base.fingerprint},
        "report": report.as_json(),
    }


def _card(patch: Patch, base: TrainingBase, strategy: str, report: Report) -> str:
    """The card: front matter in JSON, which is YAML, so that no name can break out of its place."""
    front = {"base_model": base.name, "base_model_relation": "adapter", "tags": ["adapterhub", "ported"]}
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value)]
    lines += ["---", "", f"# Ported to {base.name}", "", report.sentence, ""]
    lines += [f"Carried by the {strategy} strategy from {patch.facts.base.name or 'an unnamed base'}, where it was"]
    lines += [
        "trained. `port.json` has the measurements behind the sentence above; they are read off the weights and do"
    ]
    lines += ["not replace an evaluation on the task.", ""]
    return "\n".join(lines)
