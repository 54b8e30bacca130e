"""Merges: checked and queued in the web process, computed and committed in a job process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import jobs, licences, publish, recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.cards import FILE as CARD
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.publish import Written
from adapterhub.hub.services.resolve import Resolved, resolve_expression
from adapterhub.merging.plan import Plan

KIND = "merge"


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
) -> Job:
    """A job that merges by `expression` and commits the result to `push`, or to one named after the recipe.

    Names are resolved to commits now; whatever can be known to fail is refused now: unknown names, shapes that do not
    fit, a method's parameters, memory, the right to push. Asking again for what is not finished gives the same job. A
    repository that is made for the result is private where any input is private or gated.
    """
    resolved, found = recipes.planned(hub, caller, expression, as_kind=as_kind, dtype=dtype, heads=heads)
    target = push or f"{caller.name}/merge-{found.recipe_digest[7:15]}"
    publish.require_target(hub, caller, target)
    payload = {
        "expression": expression,
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
    return resolve_expression(hub, caller, job.payload["expression"], job.payload["pins"]).wanted


def run(hub: Hub, job: Job, report: Report, *, engine: Engine) -> Mapping[str, Any]:
    """The merge that the job asks for, computed and committed; the job's result."""
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
    asked = job.payload
    options = {"as_kind": asked["as"], "dtype": asked["dtype"], "heads": asked.get("heads")}
    resolved, found = recipes.planned(hub, caller, asked["expression"], pins=asked["pins"], **options)
    with publish.workplace(hub, job) as out:
        result = engine(found, out, progress=_shown(report), cancelled=report.cancelled)
        files = _with_licence(out, result.files, resolved)
        report.hold()
        summary = asked["message"] or f"Merge {asked['expression']}"[:200]
        done = publish.to_repository(hub, caller, asked["push"], out, files, summary, private=bool(asked["private"]))
    hub.db.transact(lambda session: recipes.keep(session, caller, found, asked["expression"]))
    return {
        "repo": done.repo_id,
        "branch": done.branch,
        "commit": done.oid,
        "is_new": done.is_new,
        "recipe_digest": found.recipe_digest,
        "files": [{"path": one.name, "size": one.size_bytes, "digest": one.digest} for one in files],
        "report": dict(result.report),
    }


def _shown(report: Report) -> Callable[[Progress], None]:
    return lambda at: report.progress(at.done, at.total, "bytes", at.message)


def _with_licence(out: Path, files: Sequence[Written], resolved: Resolved) -> list[Written]:
    """The files, the card among them now stating the licence that follows from the inputs'."""
    joined = licences.join(one.licence for one in resolved.revisions.values())
    text = licences.stated((out / CARD).read_text(encoding="utf-8"), joined)
    if len(joined) > 1:
        lines = (f"- `{one.repo.full_name}`: {one.licence or licences.UNKNOWN}" for one in resolved.revisions.values())
        text += "\n## Licences\n\nThe inputs carry different licences; all of them apply:\n\n" + "\n".join(lines) + "\n"
    return publish.rewritten(out, files, CARD, text)
