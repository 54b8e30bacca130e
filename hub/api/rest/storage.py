"""Care of the bytes, for administrators."""

from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import JobView
from adapterhub.hub.services import jobs, xet_retention

router = APIRouter(prefix="/api/storage", tags=["storage"])


@router.post("/sweep", status_code=202, response_model=JobView)
async def sweep(hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Drop uploaded chunks that are older than clients remember; files stay. Runs daily by itself."""
    return jobs.view(await threads.run(xet_retention.request, hub, caller))
