"""The form that merges, made of the methods' own parameters, and the page of the job that it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.api.errors import status_of
from adapterhub.hub.context import Hub
from adapterhub.hub.services import composing, jobs, merges, recipes
from adapterhub.hub.services.access import Caller, require_jobs
from adapterhub.hub.web import sessions
from adapterhub.hub.web.pages import render
from adapterhub.hub.web.sessions import VisitorDep
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import methods
from adapterhub.merging.plan import FLOATS
from adapterhub.merging.registry import Parameter, parameters_of

ROWS, MOST_ROWS = 3, 64
"""Inputs that the form has room for: at first, and at most."""

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/merge")
async def merge_page(
    visitor: VisitorDep,
    base: Annotated[str, Query(max_length=400)] = "",
    input: Annotated[str, Query(max_length=400)] = "",
    method: Annotated[str, Query(max_length=100)] = "",
) -> HTMLResponse:
    """The empty form, or with a base, an input and a method that a page leads here with."""
    return _page(visitor, {"base": base, "input-1": input, "method": method})


@router.post("/merge")
async def merge(request: Request, hub: HubDep, visitor: VisitorDep) -> Response:
    """What the form's buttons do: room for another input, a method's parameters, the plan, the merge itself."""
    sessions.require_same_origin(request)
    form = await request.form(max_fields=4 * MOST_ROWS)
    said = {name: value.strip() for name, value in form.items() if isinstance(value, str)}
    deed = said.get("deed")
    try:
        if deed == "merge":
            job = await threads.run(_merge, hub, visitor, said)
            return RedirectResponse(f"/jobs/{job}", status_code=303)
        plan = await threads.run(_explained, hub, visitor, said) if deed == "explain" else None
        return _page(visitor, said, more=int(deed == "more"), plan=plan)
    except AdapterHubError as error:
        return _page(visitor, said, status=status_of(error), problem=str(error))


@router.get("/jobs/{job_id}")
async def job_page(job_id: str, hub: HubDep, visitor: VisitorDep) -> HTMLResponse:
    """How far a job is; the page asks again by itself until it has ended."""
    job = await threads.run(jobs.get, hub, visitor, job_id)
    shown, twin = jobs.view(job), f"/api/jobs/{job.id}"
    return render("job.html", visitor=visitor, job=shown, is_finished=jobs.is_finished(job), json_twin=twin)


def expression_of(said: Mapping[str, str]) -> str:
    """The expression that the form's fields mean: the base, and inputs with their weights, by a method or as a sum.

    Raises InvalidParameter for what is missing or no number; and as `composing.expression`.
    """
    if not said.get("base"):
        raise InvalidParameter("base: name the model that the result starts from, such as team/base")
    inputs = [
        (said[f"input-{number}"], _number(said.get(f"weight-{number}") or "1", f"weight {number}"))
        for number in range(1, MOST_ROWS + 1)
        if said.get(f"input-{number}")
    ]
    spec = methods().get(said.get("method", ""))
    known = () if spec is None else parameters_of(spec.parameters)
    given = {one.name: _value(one, said[f"p.{one.name}"]) for one in known if said.get(f"p.{one.name}")}
    return composing.expression(said["base"], inputs, said.get("method"), given)


def _value(one: Parameter, text: str) -> float | bool | str:
    if one.type == "bool":
        return text == "true"
    return text if one.type == "str" else _number(text, one.name)


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidParameter(f"{what}: {text!r} is no number")
    return number


def _result(said: Mapping[str, str]) -> dict[str, Any]:
    """What the form says of the result, for plans and merges."""
    return {"as_kind": said.get("as") or None, "dtype": said.get("dtype") or None, "heads": said.get("heads") or None}


def _explained(hub: Hub, caller: Caller, said: Mapping[str, str]) -> dict[str, Any]:
    return recipes.explain(hub, caller, expression_of(said), **_result(said))


def _merge(hub: Hub, caller: Caller, said: Mapping[str, str]) -> str:
    require_jobs(caller)
    asked = partial(merges.request, push=said.get("push") or None, private=bool(said.get("private")))
    return asked(hub, caller, expression_of(said), message=said.get("message") or None, **_result(said)).id


def _page(
    visitor: Caller,
    said: Mapping[str, str],
    *,
    status: int = 200,
    problem: str | None = None,
    more: int = 0,
    plan: Mapping[str, Any] | None = None,
) -> HTMLResponse:
    known = methods()
    spec = known.get(said.get("method", ""))
    filled = max((number for number in range(1, MOST_ROWS + 1) if f"input-{number}" in said), default=0)
    return render(
        "merge.html",
        status=status,
        visitor=visitor,
        said=said,
        problem=problem,
        plan=plan,
        rows=min(max(ROWS, filled) + more, MOST_ROWS),
        methods=sorted(known.values(), key=lambda one: one.name),
        spec=spec,
        parameters=() if spec is None else parameters_of(spec.parameters),
        dtypes=FLOATS,
    )
