"""Jobs: listed, watched and cancelled."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.responses import StreamingResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import JobList, JobView, State
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.services import jobs

POLL_S = 0.25
"""Seconds between two looks at a watched job."""
PING_S = 10.0
"""Seconds of silence after which a comment keeps the connection open through proxies."""

router = APIRouter(prefix="/api/jobs", tags=["jobs"])


@router.get("", response_model=JobList)
async def list_jobs(
    hub: HubDep,
    caller: CallerDep,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=jobs.MAX_LISTED)] = 100,
) -> dict[str, Any]:
    """List your jobs, newest first; an administrator sees everybody's."""
    found = await threads.run(lambda: jobs.list_jobs(hub, caller, state=state, limit=limit))
    return {"items": [jobs.view(job) for job in found]}


@router.get("/{job_id}", response_model=JobView)
async def get_job(job_id: str, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Show one job."""
    return jobs.view(await threads.run(jobs.get, hub, caller, job_id))


@router.post("/{job_id}/cancel", response_model=JobView)
async def cancel_job(job_id: str, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Cancel a job: at once while it waits, soon when it runs; one that ended stays as it ended."""
    return jobs.view(await threads.run(jobs.cancel, hub, caller, job_id))


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def watch_job(
    job_id: str, hub: HubDep, caller: CallerDep, last_event_id: Annotated[str | None, Header(max_length=64)] = None
) -> StreamingResponse:
    """Watch a job as server-sent events: `progress` at each change, `done` at its end; the data is the job's JSON.

    A client that comes back with Last-Event-ID is sent what differs from what it saw.
    """
    job = await threads.run(jobs.get, hub, caller, job_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(hub, job, last_event_id), headers=headers, media_type="text/event-stream")


async def _events(hub: Hub, job: Job, seen: str | None) -> AsyncIterator[str]:
    silent_s = 0.0
    while True:
        data = json.dumps(jobs.view(job))
        # the id names the state and not a position, so that it means the same after a restart of the server
        current = hashlib.sha256(data.encode()).hexdigest()[:16]
        if jobs.is_finished(job):
            yield f"id: {current}\nevent: done\ndata: {data}\n\n"
            return
        if current != seen:
            yield f"id: {current}\nevent: progress\ndata: {data}\n\n"
            seen, silent_s = current, 0.0
        elif silent_s >= PING_S:
            yield ": ping\n\n"
            silent_s = 0.0
        await asyncio.sleep(POLL_S)
        silent_s += POLL_S
        job = await threads.run(hub.jobs.get, job.id)
