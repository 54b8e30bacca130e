"""Searches for the weights of a recipe: checked and queued in the web process, scored in a job process.

What a trial scored is on disk before the next begins, so a job whose worker dies goes on where it was.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import InvalidRequest, OutboundFailed, TooLarge, UnfitPatch
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import jobs, outbound, recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.resolve import Resolved, resolve_expression
from adapterhub.hub.services.wiring import SPOOL_FOLDER
from adapterhub.hub.serving import heldout
from adapterhub.hub.serving.heldout import HeldOut
from adapterhub.merging.errors import Cancelled, MergingError
from adapterhub.merging.folders import json_digest
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input, base_of
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Recipe
from adapterhub.merging.tuning.journal import Journal
from adapterhub.merging.tuning.knobs import Space, space
from adapterhub.merging.tuning.search import Course, Trial, search

KIND = "tuning"
TASK_BYTES = 1 << 20
"""Most bytes of held-out examples in one request."""
JUDGE_S = 600.0
JUDGE_BYTES = 1 << 16


class Bench(Protocol):
    """`adapterhub.hub.serving.scoring.Bench`, which only a job process loads."""

    def score(self, found: Plan, heldout: HeldOut) -> float: ...


def request(hub: Hub, caller: Caller, asked: Mapping[str, Any]) -> Job:
    """A job that searches the weights of a recipe. asked: as the REST schema `TuningRequest` has it, JSON values.

    Names are resolved to commits now; whatever can be known to fail is refused now. Asking again for what is not
    finished gives the same job.
    """
    _examples(asked)
    if asked["judge"] is not None:
        outbound.check(asked["judge"])
    resolved, found = recipes.planned(hub, caller, asked["expression"])
    _check_size(hub, found)
    _space(resolved, asked)
    _course(asked)
    payload = {**asked, "pins": resolved.pins, **jobs.power_of(caller)}
    key = f"{jobs.asker(caller)} {json_digest([asked, resolved.pins])}"
    return hub.jobs.submit(KIND, payload, key=key, owner_id=caller.account_id)


def inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What the job reads. Raises as `resolve_expression`."""
    return _resolved(hub, job).wanted


def run(hub: Hub, job: Job, report: Report, *, bench: Callable[[Input], Bench]) -> Mapping[str, Any]:
    """The search that the job asks for; its result has the recipe found, which is kept, and every trial."""
    asked, resolved = job.payload, _resolved(hub, job)
    searched, course, examples = _space(resolved, asked), _course(asked), _examples(asked)
    path = hub.settings.data / SPOOL_FOLDER / f"tuning-{job.id}.jsonl"
    journal = Journal(path, {"job": job.id})
    ends = time.monotonic() + asked["seconds"]
    score = _scorer(hub, resolved, asked, examples, bench(resolved.inputs[searched.base]) if examples else None)

    def checked(recipe: Recipe, point: Mapping[str, float]) -> float:
        if report.cancelled():
            raise Cancelled(f"job {job.id} was asked to stop; its trials are kept until it goes on")
        return score(recipe, point)

    def record(trial: Trial) -> None:
        journal.record(trial)
        told = f"refused: {trial.refused}" if trial.score is None else f"scores {trial.score:.6g}"
        report.progress(trial.number + 1, course.evaluations, "evaluations", f"{trial.expression}: {told}")

    found = search(
        searched,
        course,
        checked,
        done=journal.done,
        record=record,
        is_over=lambda: time.monotonic() > ends,
        refusals=(MergingError, UnfitPatch),
    )
    best = _planned(hub, resolved, parse(found.best.expression))
    report.hold()
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
    hub.db.transact(lambda session: recipes.keep(session, caller, best.canonical, found.best.expression))
    path.unlink(missing_ok=True)
    trials = [one.as_json() for one in found.trials]
    measure = examples.measure if examples else "the judge's score"
    return {**found.as_json(), "measure": measure, "recipe_digest": best.recipe_digest, "trials": trials}


def _check_size(hub: Hub, found: Plan) -> None:
    """Raises TooLarge for a base that the engine would not keep in memory either; a judge needs none, but serves it."""
    size_bytes = sum(handle.nbytes for handle in found.base.tensors.values())
    if size_bytes > hub.settings.pool_bytes:
        raise TooLarge(
            f"{found.base.name}: {size_bytes} bytes, and candidates are scored in memory; at most "
            f"{hub.settings.pool_bytes} are allowed (ADAPTERHUB_POOL_BYTES)"
        )


def _resolved(hub: Hub, job: Job) -> Resolved:
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
    return resolve_expression(hub, caller, job.payload["expression"], job.payload["pins"])


def _space(resolved: Resolved, asked: Mapping[str, Any]) -> Space:
    low, high = asked["weights"]
    parameters = {name: (one[0], one[1]) if one else None for name, one in asked["parameters"].items()}
    base = base_of(resolved.recipe, resolved.inputs)
    return space(resolved.recipe, base, weights=(low, high), parameters=parameters)


def _course(asked: Mapping[str, Any]) -> Course:
    examples = _examples(asked)
    larger = examples.is_larger_better if examples else bool(asked["larger_is_better"])
    return Course(asked["optimiser"], asked["seed"], asked["evaluations"], asked["penalty"], larger)


def _examples(asked: Mapping[str, Any]) -> HeldOut | None:
    """The held-out examples, None where a judge scores. Raises InvalidRequest, TooLarge."""
    if (asked["task"] is None) == (asked["judge"] is None):
        raise InvalidRequest("say what scores a candidate: task, held-out examples, or judge, a URL; one of both")
    if asked["task"] is None:
        return None
    if len(json.dumps(asked["task"])) > TASK_BYTES:
        raise TooLarge(f"task: more than {TASK_BYTES} bytes of examples; send fewer, or search on your own machine")
    return heldout.of_lines(asked["task"], "task", measure=heldout.ENTROPY if asked["entropy"] else None)


def _planned(hub: Hub, resolved: Resolved, recipe: Recipe) -> Plan:
    return plan(recipe, resolved.inputs, memory_bytes=hub.settings.merge_memory_bytes, attaches=True)


def _scorer(
    hub: Hub, resolved: Resolved, asked: Mapping[str, Any], examples: HeldOut | None, bench: Bench | None
) -> Callable[[Recipe, Mapping[str, float]], float]:
    if examples is None or bench is None:
        return lambda recipe, point: _judged(hub, asked["judge"], recipe, point, resolved.pins)
    return lambda recipe, point: bench.score(_planned(hub, resolved, recipe), examples)


def _judged(hub: Hub, url: str, recipe: Recipe, point: Mapping[str, float], pins: Mapping[str, str]) -> float:
    """What a judge says of a candidate, which it may ask this hub for: the expression, and the commits of its names."""
    body = json.dumps({"expression": str(recipe), "point": dict(point), "pins": dict(pins)}).encode()
    headers = {"Content-Type": "application/json"}
    with outbound.request(
        hub.settings,
        "POST",
        url,
        headers=headers,
        content=body,
        limit_bytes=JUDGE_BYTES,
        read_timeout_s=JUDGE_S,
        deadline_s=JUDGE_S,
        redirects=0,
    ) as response:
        text = response.read().decode("utf-8", "replace")
        if response.status != 200:
            raise OutboundFailed(f"{url}: answered {response.status}; a judge answers 200 with a number or score")
    try:
        value = json.loads(text)
        return float(value["score"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError):
        raise OutboundFailed(f'{url}: said {text[:80]!r}; a number, or {{"score": number}}, is expected') from None
