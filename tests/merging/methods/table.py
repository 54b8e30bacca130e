"""Makes docs/merge-methods.md of the methods' own words and of what the tests wrote down: `make methods`.

Given --check it writes nothing, and fails where the page's text is behind the code, a measurement is not exact, or a
method was measured nowhere and no reason is given here. Errors, whose last digits differ between machines, are not
compared.
"""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.merging.methods import methods
from adapterhub.merging.registry import MethodSpec, parameters_of
from tests.merging.exactness.compare import DTYPES
from tests.merging.methods.tuned import OTHERS, QUICK

PAGE = Path(__file__).parents[3] / "docs" / "merge-methods.md"
ROUNDING = 1.0
"""Most roundings that an entry may be off."""
ARCHITECTURES = (*QUICK, *OTHERS)

INTRO = """\
<!-- made by `make methods`: change the methods, their docstrings or tests/merging/methods/table.py, not this file -->
# Merge methods

A merge method makes one delta of several. Δᵢ is what patch or model i has more than the base W, wᵢ its weight in the
expression, `ties(base; 0.5*a, 0.5*b, density=0.2)`; a method's result is added to the base. All compute in float32 or
wider and round once. Parameters that are not given have their defaults; `adapterhub merge methods` lists the same.

**Conventions.** *density* is the share kept, never the share dropped. Signs are elected on weighted deltas, as mergekit
does (`elect=unweighted` for the papers' way), and a sum of exactly 0 elects the positive one. Trimming is per tensor.
Random masks belong to seed, patch and tensor: neither order, threads nor device move them. *Laws*: **identity**, one
patch with weight 1 comes back; **commutative**, order does not matter; **neutral_zero**, a patch of nothing changes
nothing; **idempotent**, a patch merged with itself comes back. Each is tested where it is named, and a counter-example
is tested where it is not.

## Where tools differ, and which is right

| what | mergekit 0.1.5, peft 0.21.2 or published code | here |
|---|---|---|
"""
DIFFERENCES = (
    (
        "`dare_*`: size after dropping",
        "mergekit makes the L1 norm of a tensor what it was, about 1/density; the paper and PEFT divide by "
        "density, which keeps the mean",
        "1/density; `rescale=l1` for mergekit's",
    ),
    (
        "`della*`: size after dropping",
        "mergekit, one L1 factor a tensor; the paper, each entry by its own probability",
        "each by its own; `rescale=l1`",
    ),
    (
        "`della*` on a row of one entry",
        "mergekit divides 0 by 0 and stops",
        "its probability is the density",
    ),
    (
        "`della*`: density ± epsilon outside 0 … 1",
        "mergekit stops while it works",
        "refused before any work",
    ),
    (
        "`breadcrumbs*` on small tensors, or with gamma 0",
        "mergekit up to 0.1.4 lost the whole delta there, 0.1.5 keeps a density",
        "as 0.1.5",
    ),
    (
        "`ties`, smallest densities",
        "mergekit keeps one entry, PEFT none: a whole tensor's change is lost",
        "one entry",
    ),
    (
        "equal magnitudes at the edge of a trim",
        "mergekit and PEFT take what a sort puts first, which another version or device changes",
        "the first ones in the tensor",
    ),
    (
        "masks of random methods",
        "one global generator: another order of inputs is another model (119 % apart)",
        "by seed, patch and tensor",
    ),
    (
        "`linear` whose weights add up to 0",
        "mergekit gives infinities",
        "refused",
    ),
    (
        "`linear(normalize=false)`",
        "mergekit scales the base as well",
        "the base stays once",
    ),
    (
        "a gradient's value for `lm_head`",
        "mergekit gives what lies outside the layers the *first* value, `lm_head` and the last norm too",
        "the same in mergekit's YAML, whose results are compared; `lines` says α",
    ),
    (
        "`peft_linear`, `peft_ties`, …",
        "A and B merged apart are no sum of the deltas (about 0.9 off for two LoRAs), and depend on how each "
        "product is divided into factors",
        "PEFT's, under PEFT's names; `task_arithmetic` and `ties` on deltas are the ones to use",
    ),
    (
        "`add_weighted_adapter` with `use_rslora`",
        "PEFT's result is √r times too large: a mistake of 0.21.2",
        "the exact sum",
    ),
    (
        "`tsv_m`, `iso_c` on low-rank patches",
        "the published code fills the null space with whatever the library's decomposition put there (38 % apart)",
        "directions of rounding size are dropped",
    ),
    (
        "`wudi`",
        "a few hundred steps of Adam towards a quadratic's minimum",
        "the minimum itself",
    ),
    (
        "`regmean` with fewer samples than inputs",
        "the inverse does not exist",
        "what no patch's data reaches stays the base's",
    ),
    (
        "`emr`: the scale",
        "one for the whole model",
        "one a tensor",
    ),
)
"""What is done otherwise elsewhere: what, how there, how here."""
SUMS = """
## Negation and analogy

They need no method. `base - 0.5*toxic` takes half of a patch away, and `base + c + a - b` does to c what made a of b;
full models count as their differences from the base, and equal inputs are combined, so `base + a - a` is the base.

## Methods
"""
MEASURED = """
## Exactness

What the tests merged on whole tiny models, through the engine, against an oracle: the other tool itself, or the paper's
formula in float64. In roundings, float32 / bfloat16: 1.0 is half a unit in the last place of the result's dtype, the
one rounding that a merge takes, with the float32 in which sums are accumulated allowed for. Numbers are rounded up.
"""
NOT_RUN = """
## Not run

"""
REASONS: Mapping[str, str] = dict.fromkeys(
    ("regmean", "fisher"),
    "statistics are collected of a language model's loss on its own tokens, which this encoder has none of",
)
"""Why cells of a method are not run."""


@dataclass
class Row:
    """Largest error of one method against one oracle, by architecture and dtype."""

    errors: dict[tuple[str, str], float] = field(default_factory=dict)


Measured = dict[tuple[str, str], Row]
"""By method and oracle."""


def read(lines: Iterable[str]) -> Measured:
    """The measurements of methods among all; a method's cases, "ties-density=0.3", count together."""
    measured: Measured = {}
    for line in lines:
        told: dict[str, Any] = json.loads(line)
        if told["what"] == "method":
            row = measured.setdefault((told["kind"].partition("-")[0], told["oracle"]), Row())
            place = told["architecture"], told["dtype"]
            row.errors[place] = max(told["error"], row.errors.get(place, 0.0))
    return measured


# ---- text ------------------------------------------------------------------------------------------------------------


def text() -> str:
    """All of the page that does not depend on measurements."""
    differences = "".join(f"| {what} | {there} | {here} |\n" for what, there, here in DIFFERENCES)
    return INTRO + differences + SUMS + "\n" + "\n".join(map(_section, methods().values())) + MEASURED


def _section(spec: MethodSpec) -> str:
    formula, _, rest = inspect.getdoc(spec.function).partition("\n\n")  # type: ignore[union-attr]
    details = " ".join(rest.split())
    for of_tensors in (r"(deltas|loras): .*?\.( |$)", r"Raises .*?\.( |$)"):
        details = re.sub(of_tensors, "", details, count=1).strip()
    experimental = " *Experimental: known from its paper alone.*" if spec.is_experimental else ""
    parts = [f"### {spec.name}", f"**{spec.title}.** {spec.summary}.{experimental}", _wrapped(formula)]
    parts += [details] if details else []
    told = [
        f"- `{one.name}` ({one.range}, default `{_shown(one.default)}`): {one.help}"
        for one in parameters_of(spec.parameters)
    ]
    parts += ["\n".join(told)] if told else []
    parts += [_takes(spec), _laws(spec)]
    return "\n\n".join(parts) + "\n"


def _wrapped(formula: str) -> str:
    return " ".join(formula.split())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _takes(spec: MethodSpec) -> str:
    fewest, most = spec.inputs
    count = f"{fewest} or more" if most is None else str(fewest) if most == fewest else f"{fewest} to {most}"
    kinds = "LoRAs as they were trained" if spec.takes_trained else "patches and models of any kind"
    carried = f" that carry statistics ({spec.statistics})" if spec.statistics else ""
    weights = "weights" if spec.takes_weights else "no weights"
    stays = " Low-rank patches are merged by their factors alone." if spec.on_factors is not None else ""
    return f"Takes {count}: {kinds}{carried}; {weights}.{stays}"


def _laws(spec: MethodSpec) -> str:
    always = ", ".join(sorted(spec.laws)) or "none"
    at = [
        f"{law} at {', '.join(f'{key}={_shown(value)}' for key, value in told.items())}"
        for law, told in sorted(spec.laws_at.items())
    ]
    return f"Laws: {'; '.join([always, *at])}."


def behind() -> list[str]:
    """What the page should say of the methods that are there now."""
    return (
        [] if PAGE.read_text().startswith(text()) else ["docs/merge-methods.md is behind the methods: `make methods`"]
    )


# ---- measurements ----------------------------------------------------------------------------------------------------


def exactness(measured: Measured) -> list[str]:
    rows = ["| method | oracle | " + " | ".join(ARCHITECTURES) + " |", "|---" * (2 + len(ARCHITECTURES)) + "|"]
    for name in methods():
        found = {oracle: row for (method, oracle), row in sorted(measured.items()) if method == name}
        for oracle, row in (found or {"none": Row()}).items():
            cells = (_cell(row, architecture) for architecture in ARCHITECTURES)
            rows.append(f"| {name} | {oracle} | " + " | ".join(cells) + " |")
    return rows


def _cell(row: Row, architecture: str) -> str:
    errors = [row.errors.get((architecture, dtype)) for dtype in DTYPES]
    if all(error is None for error in errors):
        return "not run"
    return " / ".join("not run" if error is None else _up(error) for error in errors)


def _up(error: float) -> str:
    """One step up of 1, 2, 5, so that another machine's last bits change no page."""
    steps = (m * 10.0**e for e in range(-18, 3) for m in (1, 2, 5))
    return "0" if error == 0 else f"{next(step for step in steps if error <= step):g}"


def not_run(measured: Measured) -> list[tuple[str, str]]:
    """(method, cells) of what no test ran."""
    missing = []
    for name in methods():
        done = {place for (method, _), row in measured.items() if method == name for place in row.errors}
        wanted = {(architecture, dtype) for architecture in ARCHITECTURES for dtype in DTYPES}
        left = sorted(f"{architecture} {dtype}" for architecture, dtype in wanted - done)
        if left:
            missing.append((name, "everything" if len(left) == len(wanted) else ", ".join(left)))
    return missing


def page(measured: Measured) -> str:
    reasons = [
        f"- **{name}**, {cells}: {REASONS.get(name, 'no reason is known')}." for name, cells in not_run(measured)
    ]
    table = "\n".join(exactness(measured))
    return text() + "\n" + table + "\n" + NOT_RUN + "\n".join(reasons) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, help="the file that AHTEST_EXACTNESS named")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    measured = read(given.records.read_text().splitlines())
    if not given.check:
        PAGE.write_text(page(measured))
        return 0
    wrong = [
        f"{name} against {oracle}: {row.errors}"
        for (name, oracle), row in measured.items()
        if max(row.errors.values()) > ROUNDING
    ]
    wrong += [f"{name}: {cells} not run, and no reason" for name, cells in not_run(measured) if name not in REASONS]
    measured_names = {name for name, _ in measured}
    wrong += [f"{name}: measured nowhere" for name in methods() if name not in measured_names]
    wrong += behind()
    sys.stderr.writelines(line + "\n" for line in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
