"""Merges: checked and queued in the web process, computed and committed in a job process."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import jobs, licences, publish, recipes, saved_recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.cards import FILE as CARD
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.publish import Written
from adapterhub.hub.services.recipe_texts import EXPRESSION
from adapterhub.hub.services.resolve import Resolved, resolve_expression
from adapterhub.merging.explain import explained
from adapterhub.merging.plan import Plan

KIND = recipes.MERGE


class Progress(Protocol):
    """How far the engine is, in bytes of tensors."""

    @property
    def done(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def message(self) -> str: ...


class Result(Protocol):
    """What the engine wrote."""

    @property
    def files(self) -> Sequence[Written]: ...

    @property
    def report(self) -> Mapping[str, Any]: ...


class Engine(Protocol):
    """`adapterhub.merging.engine.run`, which only a job process loads."""

    def __call__(
        self, plan: Plan, out: Path, *, progress: Callable[[Any], None], cancelled: Callable[[], bool]
    ) -> Result: ...


def request(
    hub: Hub,
    caller: Caller,
    expression: str,
    *,
    push: str | None = None,
    as_kind: str | None = None,
    dtype: str | None = None,
    heads: str | None = None,
    private: bool = False,
    message: str | None = None,
    syntax: str = EXPRESSION,
    pins: Mapping[str, str] | None = None,
) -> Job:
    """A job that merges by `expression` and commits the result to `push`, or to one named after the recipe.

    syntax: what the expression is written in. pins: the commits that its names mean, where others than now.
    Names are resolved to commits now; whatever can be known to fail is refused now: unknown names, shapes that do not
    fit, a method's parameters, memory, the right to push. Asking again for what is not finished gives the same job. A
    repository that is made for the result is private where any input is private or gated.
    """
    meant = {"as_kind": as_kind, "dtype": dtype, "heads": heads}
    resolved, found = recipes.planned(hub, caller, expression, pins=pins, syntax=syntax, **meant)
    target = push or f"{caller.name}/merge-{found.recipe_digest[7:15]}"
    publish.require_target(hub, caller, target)
    publish.require_room(hub, found.size_bytes)
    payload = {
        "expression": expression,
        "syntax": syntax,
        "pins": resolved.pins,
        "push": target,
        "as": as_kind,
        "dtype": dtype,
        "heads": heads,
        "private": private or any(one.repo.is_private or one.repo.gated for one in resolved.revisions.values()),
        "message": message,
        **jobs.power_of(caller),
    }
    key = f"{jobs.asker(caller)} {found.recipe_digest} {target}"
    return hub.jobs.submit(KIND, payload, key=key, owner_id=caller.account_id)


def inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What the job reads. Raises as `resolve_expression`."""
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
    asked = job.payload
    return resolve_expression(hub, caller, asked["expression"], asked["pins"], syntax=_syntax(job)).wanted


def run(hub: Hub, job: Job, report: Report, *, engine: Engine) -> Mapping[str, Any]:
    """The merge that the job asks for, computed and committed; the job's result."""
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
    asked = job.payload
    meant = {"as_kind": asked["as"], "dtype": asked["dtype"], "heads": asked.get("heads")}
    resolved, found = recipes.planned(
        hub, caller, asked["expression"], pins=asked["pins"], syntax=_syntax(job), **meant
    )
    with publish.workplace(hub, job) as out:
        began = time.monotonic()
        result = engine(found, out, progress=shown(report), cancelled=report.cancelled)
        work = _work(found, time.monotonic() - began)
        files = _with_licence(out, result.files, resolved)
        report.hold()
        said = asked["expression"] if _syntax(job) == EXPRESSION else resolved.recipe
        summary = asked["message"] or f"Merge {said}"[:200]
        done = publish.to_repository(hub, caller, asked["push"], out, files, summary, private=bool(asked["private"]))
    hub.db.transact(lambda session: recipes.keep(session, caller, found.canonical, asked["expression"]))
    return {
        "repo": done.repo_id,
        "branch": done.branch,
        "commit": done.oid,
        "is_new": done.is_new,
        "recipe_digest": found.recipe_digest,
        "files": [{"path": one.name, "size": one.size_bytes, "digest": one.digest} for one in files],
        "report": dict(result.report),
        "work": work,
    }


def rerun(
    hub: Hub,
    caller: Caller,
    name: str,
    number: int | None = None,
    *,
    latest: bool = False,
    push: str | None = None,
    private: bool = False,
    message: str | None = None,
) -> Job:
    """A job that merges by a version of a saved recipe, at the commits that it was saved with.

    latest: at those that its names mean now, instead. Raises RecipeNotFound, and as `request`.
    """
    with hub.db.read() as session:
        saved = saved_recipes.get(session, caller, name, number)
    one = saved.version
    return request(
        hub,
        caller,
        one.text,
        push=push,
        as_kind=one.as_kind,
        dtype=one.dtype,
        private=private or saved.row.is_private,
        message=message or f"Merge {saved.address}" + (" anew" if latest else ""),
        syntax=one.syntax,
        pins=None if latest else {str(ref): str(pin) for ref, pin in one.pins.items()},
    )


def _syntax(job: Job) -> str:
    # a job that an earlier version queued says nothing of it
    return str(job.payload.get("syntax", EXPRESSION))


def _work(found: Plan, seconds: float) -> dict[str, Any]:
    """What estimates of later merges are made from: bytes read and written, seconds, tensors by method."""
    told = explained(found)
    return {"bytes": told["read_bytes"] + told["size_bytes"], "seconds": seconds, "methods": told["methods"]}


def shown(report: Report) -> Callable[[Progress], None]:
    """What tells a job's report how far the engine is."""
    return lambda at: report.progress(at.done, at.total, "bytes", at.message)


def _with_licence(out: Path, files: Sequence[Written], resolved: Resolved) -> list[Written]:
    """The files, the card among them now stating the licence that follows from the inputs'."""
    joined = licences.join(one.licence for one in resolved.revisions.values())
    text = licences.stated((out / CARD).read_text(encoding="utf-8"), joined)
    if len(joined) > 1:
        lines = (f"- `{one.repo.full_name}`: {one.licence or licences.UNKNOWN}" for one in resolved.revisions.values())
        text += "\n## Licences\n\nThe inputs carry different licences; all of them apply:\n\n" + "\n".join(lines) + "\n"
    return publish.rewritten(out, files, CARD, text)
