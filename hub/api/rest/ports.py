"""Ports: asked for here, done by a job."""

from functools import partial
from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import JobView, PortRequest
from adapterhub.hub.services import jobs, ports
from adapterhub.hub.services.access import require_jobs

router = APIRouter(prefix="/api/ports", tags=["ports"])


@router.post("", status_code=202, response_model=JobView)
async def request_port(asked: PortRequest, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Carry a patch to another base, with a report of how well it fits; the answer is the job that does it."""
    require_jobs(caller)
    request = partial(ports.request, hub, caller, asked.patch, asked.to, push=asked.push, strategy=asked.strategy)
    return jobs.view(await threads.run(request))
