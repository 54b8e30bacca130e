"""Makes docs/kinds.md of what the tests of exactness wrote down: `make kinds`.

Given --check it writes nothing, and fails where the page's list of kinds is behind, a measurement is not exact, or what
it says of a kind (folds, runs, writes, converts) was measured nowhere, or in one dtype without a reason. Errors, whose
last digits differ between machines, are not compared.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.merging import patches
from adapterhub.merging.forms import DENSE, forms_of
from adapterhub.merging.patch import PatchKind
from adapterhub.merging.runtime import runtimes
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES

PAGE = Path(__file__).parents[3] / "docs" / "kinds.md"
ROUNDING = 1.0
"""Most roundings that a weight may be off."""

INTRO = """\
<!-- made by `make kinds`, which folds and runs them: change the code or its tests, not this file -->
# What is done with each kind of patch

`adapterhub patch kinds` lists what each is. Here is what the tests did with them, on tiny random models of many
architectures, in float32 and bfloat16.

**folds**: *own*: its weights are computed here; *peft*: peft itself computes them, in a confined process, on a skeleton
of the touched parameters; *no*: it works on a live model alone. **writes**: a merge can be stored as this kind.
**converts**: what `adapterhub patch convert --to` makes of it, exactly. Every one of these claims was measured below.
"""
MEASURED = """
## Exactness

Weights are measured in roundings: 1.0 is half a unit in the last place of the result's dtype, the one rounding that a
fold takes, with the float32 in which sums are accumulated allowed for. Where the oracle's weights are not the truth
(tied embeddings, a merge that loses digits) the live adapter's outputs are, and the largest relative difference is
given.
"""
NO_KINDS = ("method", "file", "masks folded")
"""Measurements of merges, not of kinds: tests/merging/methods/table.py has the methods'."""

ONE_DTYPE = {
    "as a LoRA": "factors are written in float32, with and without a base alike",
    "written": "a file is written in float32, with and without a base alike",
    "generate": "tokens follow from logits, which have rows of their own",
    "read": "the numbers in a file belong to no base",
}
"""Why a measurement of this sort is made in one dtype alone."""

PECULIAR = {
    ("adapters_lora", "logits"): "the library, in an environment of its own, gave its answers in float32",
    ("adapters_lora", "as a dense patch"): "compared with the fold, whose oracle answered in float32",
    ("lora (kasa)", "weights"): "peft's merge loses up to 1.5 roundings; the live adapter is the oracle",
    ("lora (kasa)", "as a dense patch"): "peft's merge loses up to 1.5 roundings; the live adapter is the oracle",
}
"""The same of one kind, or variant, alone."""

NOT_RUN = """
## Not measured

What no test folded or ran, and why: a library's refusal is in its own words, and a test checks that it still refuses.
"""


@dataclass
class Row:
    """What was measured of one kind against one oracle. errors: the largest, by dtype, and where."""

    what: str
    errors: dict[str, float] = field(default_factory=dict)
    architectures: set[str] = field(default_factory=set)


Measured = dict[tuple[str, str, str], Row]
"""By kind or variant ("lora (dora)"), oracle, and "weights" or "logits"."""


def read(lines: Iterable[str]) -> tuple[Measured, dict[tuple[str, str], str]]:
    """Rows of measurements, and refusals by kind and architecture."""
    measured: Measured = {}
    refused: dict[tuple[str, str], str] = {}
    for line in lines:
        told: dict[str, Any] = json.loads(line)
        if told["what"] in NO_KINDS:
            continue
        if told["what"] == "refused":
            refused[told["kind"], told["architecture"]] = told["oracle"]
            continue
        row = measured.setdefault((told["kind"], told["oracle"], told["what"]), Row(told["what"]))
        row.errors[told["dtype"]] = max(told["error"], row.errors.get(told["dtype"], 0.0))
        row.architectures.add(told["architecture"])
    return measured, refused


def kind_of(variant: str) -> str:
    return variant.partition(" ")[0]


def capabilities() -> list[str]:
    rows = ["| kind | what it is | of | folds | runs | writes | converts |", "|---|---|---|---|---|---|---|"]
    for name, kind in patches.kinds().items():
        runs = "yes" if name in runtimes() else "-"
        writes = "yes" if kind.export is not None else "-"
        converts = ", ".join(forms_of(kind)) or "-"
        rows.append(f"| {name} | {kind.summary} | {kind.family} | {kind.folds} | {runs} | {writes} | {converts} |")
    return rows


def behind() -> list[str]:
    """What the page should say of the kinds that are there now."""
    stored = PAGE.read_text().splitlines()
    return [f"docs/kinds.md lacks the line: {line}" for line in capabilities() if line not in stored]


def exactness(measured: Measured) -> list[str]:
    columns = "| kind | oracle | architectures | " + " | ".join(DTYPES) + " |"
    rows = [columns, "|---" * (3 + len(DTYPES)) + "|"]
    for (variant, oracle, what), row in sorted(measured.items()):
        missing = f"not run: {_why_not(variant, what) or '**no reason known**'}"
        errors = (_error(row.errors[dtype], what) if dtype in row.errors else missing for dtype in DTYPES)
        count = f"{len(row.architectures)}: " + ", ".join(sorted(row.architectures))
        if row.architectures >= set(ARCHITECTURES):
            count = f"all {len(ARCHITECTURES)}"
        form = f", {what}" if what not in ("weights", "logits") else ""
        rows.append(f"| {variant}{form} | {oracle} | {count} | " + " | ".join(errors) + " |")
    return rows


def _why_not(variant: str, what: str) -> str | None:
    """Why a measurement was made in one dtype alone; None where it should have been in both."""
    return PECULIAR.get((variant, what)) or PECULIAR.get((kind_of(variant), what)) or ONE_DTYPE.get(what)


def _error(error: float, what: str) -> str:
    return f"{_up(error)} of the output" if what == "logits" else f"{_up(error)} roundings"


def _up(error: float) -> str:
    """Two digits, so that another machine's last bits change no page."""
    return "0" if error == 0 else f"< {_ceiling(error):g}"


def _ceiling(error: float) -> float:
    steps = (m * 10.0**e for e in range(-18, 3) for m in (1, 2, 5))
    return next(step for step in steps if error <= step)


def unmeasured(measured: Measured, refused: Mapping[tuple[str, str], str]) -> list[str]:
    rows = ["| kind | on | reason |", "|---|---|---|"]
    for (variant, architecture), reason in sorted(refused.items()):
        rows.append(f"| {variant} | {architecture} | {reason.replace('|', '/')} |")
    rows += [f"| {name} | everything | **not run**: {claim} |" for name, claim in unproved(measured)]
    return rows


def unproved(measured: Measured) -> list[tuple[str, str]]:
    """What `adapterhub patch kinds` says of a kind and no test did: (kind, claim)."""
    did: dict[str, set[str]] = {}
    for variant, _, what in measured:
        did.setdefault(kind_of(variant), set()).add(what)
    return [
        (name, claim)
        for name, kind in patches.kinds().items()
        for claim, proofs in _claims(name, kind).items()
        if not proofs & did.get(name, set())
    ]


def _claims(name: str, kind: PatchKind) -> dict[str, set[str]]:
    """The measurements of which one proves each claim, by claim."""
    to = forms_of(kind)
    claims = {
        "folds": {"weights", "logits"} if kind.folds != "no" else None,
        "runs": {"logits", "generate"} if name in runtimes() else None,
        "writes": {"written"} if kind.export is not None else None,
        "converts to dense": {"as a dense patch"} if DENSE in to else None,
        "converts to lora": {"as a LoRA"} if "lora" in to else None,
    }
    return {claim: proofs for claim, proofs in claims.items() if proofs}


def page(measured: Measured, refused: Mapping[tuple[str, str], str]) -> str:
    parts = [INTRO, "\n".join(capabilities()), MEASURED, "\n".join(exactness(measured)), NOT_RUN]
    return "\n".join([*parts, "\n".join(unmeasured(measured, refused))]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, help="the file that AHTEST_EXACTNESS named")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    measured, refused = read(given.records.read_text().splitlines())
    if not given.check:
        PAGE.write_text(page(measured, refused))
        return 0
    wrong = [
        f"{variant} against {oracle}: {row.errors}"
        for (variant, oracle, what), row in measured.items()
        if what != "logits" and max(row.errors.values()) > ROUNDING
    ]
    wrong += [f"{name}: {claim}, says the table, and no test did it" for name, claim in unproved(measured)]
    wrong += [
        f"{variant} against {oracle}: measured in {', '.join(row.errors)} alone, and nothing says why"
        for (variant, oracle, what), row in measured.items()
        if row.errors.keys() < DTYPES.keys() and _why_not(variant, what) is None
    ]
    wrong += behind()
    sys.stderr.writelines(line + "\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
