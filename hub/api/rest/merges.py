"""Merges: asked for here, computed by a job."""

from functools import partial
from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import JobView, MergeRequest
from adapterhub.hub.services import jobs, merges
from adapterhub.hub.services.access import require_jobs

router = APIRouter(prefix="/api/merges", tags=["merges"])


@router.post("", status_code=202, response_model=JobView)
async def request_merge(asked: MergeRequest, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Merge by an expression or a recipe file and push the result; the answer is the job that does it.

    Whatever can be known to fail is refused here. Watch the job at /api/jobs/{id}/events.
    """
    require_jobs(caller)
    request = partial(
        merges.request,
        hub,
        caller,
        asked.text,
        syntax=asked.syntax,
        push=asked.push,
        as_kind=asked.as_kind,
        dtype=asked.dtype,
        heads=asked.heads,
        private=asked.private,
        message=asked.message,
    )
    return jobs.view(await threads.run(request))
