"""Searches and curves over recipes of local folders: a thin use of the merging library and of the serving engine."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx

from adapterhub.cli.errors import CliError, Declined, Missing, Misused
from adapterhub.hub.errors import UnfitPatch
from adapterhub.hub.serving import heldout
from adapterhub.hub.serving.heldout import HeldOut
from adapterhub.merging.errors import MergingError
from adapterhub.merging.folders import json_digest
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input, base_of
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Node, Recipe, Ref, total, weighted
from adapterhub.merging.tuning import knee as knees
from adapterhub.merging.tuning.journal import Journal
from adapterhub.merging.tuning.knobs import Bounds, space
from adapterhub.merging.tuning.search import Course, Trial, search

if TYPE_CHECKING:
    from adapterhub.hub.serving.scoring import Bench

FOLDER = "{folder}"
"""Stands in a scoring command for the folder into which the candidate is merged."""

JUDGE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Judge:
    """What scores a candidate: examples on the engine, a command, or a URL; one of them is given."""

    examples: HeldOut | None = None
    command: str | None = None
    url: str | None = None
    is_larger_better: bool = False

    @property
    def name(self) -> str:
        """What is measured, in a word."""
        if self.examples is not None:
            return self.examples.measure
        return "the command's score" if self.command else "the judge's score"


@dataclass(frozen=True)
class Workshop:
    """The recipe's inputs, where candidates are computed, and what one step may take."""

    inputs: Mapping[Ref, Input]
    device: str
    memory_bytes: int

    def planned(self, recipe: Recipe, *, attaches: bool = True) -> Plan:
        """The plan of a candidate. Raises as `merging.plan.plan`."""
        return plan(recipe, self.inputs, memory_bytes=self.memory_bytes, attaches=attaches)

    def bench(self, base: Ref) -> Bench:
        """The base, in memory."""
        from adapterhub.hub.serving.scoring import Bench

        return Bench(self.inputs[base], self.device)


def examples(path: Path, *, measure: str | None = None) -> HeldOut:
    """The held-out examples of a file. Raises Missing, InvalidRequest."""
    if not path.is_file():
        raise Missing(f"{path}: no such file")
    return heldout.read(path.read_text(encoding="utf-8"), str(path), measure=measure)


def tune(
    expression: str,
    workshop: Workshop,
    judge: Judge,
    course: Course,
    *,
    weights: Bounds,
    parameters: Mapping[str, Bounds | None],
    seconds: float | None,
    journal: Path | None,
    told: Callable[[Trial, Trial], None],
) -> dict[str, Any]:
    """What a search over local folders found. journal: the file that it goes on from and writes to, None for none.

    seconds: of this run. told: called with each trial and the best so far. Raises Misused, MergingError, CliError.
    """
    recipe = parse(expression)
    base = base_of(recipe, workshop.inputs)
    searched = space(recipe, base, weights=weights, parameters=parameters)
    header = _header(recipe, base, judge, course, weights, parameters)
    book = None if journal is None else Journal(journal, header)
    best: list[Trial] = []
    ends = math.inf if seconds is None else time.monotonic() + seconds

    def record(trial: Trial) -> None:
        if book is not None:
            book.record(trial)
        if trial.objective is not None and (not best or trial.objective < (best[0].objective or 0.0)):
            best[:] = [trial]
        told(trial, best[0])

    done = book.done if book else []
    best[:] = [one for one in sorted(done, key=_objective) if one.objective is not None][:1]
    found = search(
        searched,
        course,
        _scorer(workshop, judge, base),
        done=done,
        record=record,
        is_over=lambda: time.monotonic() > ends,
        refusals=(MergingError, UnfitPatch),
    )
    digest = workshop.planned(parse(found.best.expression)).recipe_digest
    return found.as_json() | {
        "measure": judge.name,
        "recipe_digest": digest,
        "journal": str(journal) if journal else None,
    }


def asked(
    expression: str,
    judge: Judge,
    course: Course,
    weights: Bounds,
    parameters: Mapping[str, Bounds | None],
    seconds: float | None,
) -> dict[str, Any]:
    """The body of `POST /api/tunings`."""
    body = {
        "expression": expression,
        "task": None if judge.examples is None else list(judge.examples.lines),
        "entropy": judge.examples is not None and judge.examples.measure == heldout.ENTROPY,
        "judge": judge.url,
        "larger_is_better": judge.is_larger_better and judge.examples is None,
        "weights": weights,
        "parameters": dict(parameters),
        **{name: getattr(course, name) for name in ("optimiser", "evaluations", "seed", "penalty")},
    }
    return body if seconds is None else body | {"seconds": seconds}


def _objective(trial: Trial) -> float:
    return math.inf if trial.objective is None else trial.objective


def _header(
    recipe: Recipe,
    base: Ref,
    judge: Judge,
    course: Course,
    weights: Bounds,
    parameters: Mapping[str, Bounds | None],
) -> dict[str, Any]:
    """What the course of a search depends on. The budget is not among it: a longer one goes on from a shorter one."""
    lines = [] if judge.examples is None else [judge.examples.measure, *judge.examples.lines]
    return {
        "expression": str(recipe),
        "base": str(base),
        "judged_by": json_digest([lines, judge.command, judge.url]),
        "optimiser": course.optimiser,
        "seed": course.seed,
        "penalty": course.penalty,
        "is_larger_better": course.is_larger_better,
        "weights": list(weights),
        "parameters": {name: list(bounds) if bounds else None for name, bounds in sorted(parameters.items())},
    }


# ---- what scores -----------------------------------------------------------------------------------------------------


def _scorer(workshop: Workshop, judge: Judge, base: Ref) -> Callable[[Recipe, Mapping[str, float]], float]:
    if judge.command is not None:
        return lambda recipe, point: _by_command(workshop, judge.command or "", recipe, point)
    if judge.url is not None:
        return lambda recipe, point: _by_url(judge.url or "", recipe, point)
    assert judge.examples is not None
    bench, wanted = workshop.bench(base), judge.examples
    return lambda recipe, point: bench.score(workshop.planned(recipe), wanted)


def _by_command(workshop: Workshop, command: str, recipe: Recipe, point: Mapping[str, float]) -> float:
    """The number that a command prints. It reads the candidate as JSON, and the merged folder where it asks for it."""
    with TemporaryDirectory(prefix="adapterhub-tune-") as spool:
        asked: dict[str, Any] = {"expression": str(recipe), "point": dict(point)}
        words = shlex.split(command)
        if any(FOLDER in word for word in words):
            from adapterhub.merging import engine

            folder = Path(spool, "candidate")
            engine.run(workshop.planned(recipe, attaches=False), folder)
            asked["folder"] = str(folder)
            words = [word.replace(FOLDER, str(folder)) for word in words]
        try:
            ended = subprocess.run(words, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=False)
        except OSError as error:
            raise Misused(f"--command {words[0]}: does not start: {error}") from error
    if ended.returncode:
        raise CliError(f"--command {words[0]}: ended with {ended.returncode} at {recipe}; the journal holds the rest")
    return _number(ended.stdout.strip().rpartition("\n")[2], f"--command {words[0]}")


def _by_url(url: str, recipe: Recipe, point: Mapping[str, float]) -> float:
    asked = {"expression": str(recipe), "point": dict(point)}
    try:
        answer = httpx.post(url, json=asked, timeout=JUDGE_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CliError(f"--judge {url}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise Declined(f"--judge {url}: answered {answer.status_code}; a judge answers 200 with a number or score")
    return _number(answer.text, f"--judge {url}")


def _number(text: str, where: str) -> float:
    """The number in a text: alone, or as `score` of an object. Raises Declined."""
    try:
        value = json.loads(text)
        return float(value["score"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError):
        raise Declined(f'{where}: said {text[:80]!r}; a number, or {{"score": number}}, is expected') from None


# ---- arguments -------------------------------------------------------------------------------------------------------


def bounds(text: str, option: str) -> Bounds:
    """Two numbers "LOW:HIGH". Raises Misused."""
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise Misused(f"{option} {text!r}: write LOW:HIGH, as 0:1") from None


def named_bounds(texts: Sequence[str]) -> dict[str, Bounds | None]:
    """Parameters by name, from "NAME" or "NAME=LOW:HIGH". Raises Misused."""
    found: dict[str, Bounds | None] = {}
    for text in texts:
        name, sign, range_text = text.partition("=")
        found[name] = bounds(range_text, f"--param {name}") if sign else None
    return found


# ---- curves ----------------------------------------------------------------------------------------------------------


def ladder(text: str) -> list[float]:
    """Strengths from 0, ascending, from "0.25,0.5,1". Raises Misused."""
    try:
        found = sorted({0.0, *(float(one) for one in text.split(","))})
    except ValueError:
        found = []
    if len(found) < 3 or found[0] < 0 or not math.isfinite(found[-1]):
        raise Misused(f"--ladder {text!r}: write two strengths above 0 or more, as 0.25,0.5,0.75,1")
    return found


def curve(
    base: str,
    patch: str,
    workshop: Workshop,
    gain: HeldOut,
    keep: HeldOut,
    strengths: Sequence[float],
    told: Callable[[float, float, float], None],
) -> dict[str, Any]:
    """Gain against retention of a patch at each strength on one resident base, and the knee's recipe.

    Scores are turned so that more is better, and are less the base's own. told: called with each strength and both.
    """
    base_ref, root = Ref.of(base), parse(patch).root
    bench = workshop.bench(base_ref)
    rows: list[tuple[float, float]] = []
    for strength in strengths:
        recipe = at_strength(base_ref, root, strength)
        scores = bench.scores(workshop.planned(recipe), [gain, keep])
        rows.append((scores[0], scores[1]))
        told(strength, *scores)
    gains = [_better(gain, row[0] - rows[0][0]) for row in rows]
    kept = [_better(keep, row[1] - rows[0][1]) for row in rows]
    points = knees.curve(strengths, gains, kept)
    found = knees.knee_of(points)
    best = None if found is None else at_strength(base_ref, root, found.strength)
    return {
        "points": [
            {**asdict(one), "gain_score": row[0], "keep_score": row[1]} for one, row in zip(points, rows, strict=True)
        ],
        "gain_measure": gain.measure,
        "keep_measure": keep.measure,
        "knee": None if found is None else found.strength,
        "recipe": None if best is None else str(best),
        "recipe_digest": None if best is None else workshop.planned(best).recipe_digest,
    }


def at_strength(base: Ref, patch: Node, strength: float) -> Recipe:
    """base + strength * patch."""
    root = base if strength == 0.0 else total([base, weighted(strength, patch)])
    return Recipe(root, str(root))


def _better(one: HeldOut, difference: float) -> float:
    return difference if one.is_larger_better else -difference
