"""Searches for the weights of a recipe: asked for here, scored by a job."""

from functools import partial
from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import JobView, TuningRequest
from adapterhub.hub.services import jobs, tunings
from adapterhub.hub.services.access import require_jobs

router = APIRouter(prefix="/api/tunings", tags=["tunings"])


@router.post("", status_code=202, response_model=JobView)
async def request_tuning(asked: TuningRequest, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Search the weights of a recipe for the best score, without gradients; the answer is the job that does it.

    Its result has the recipe found, its digest, and every candidate with its score.
    """
    require_jobs(caller)
    return jobs.view(await threads.run(partial(tunings.request, hub, caller, asked.model_dump(mode="json"))))
