"""What clients may ask a hub for and this one does not have: each refused in a sentence that says why.

Source: the routes in huggingface_hub/hf_api.py list_papers, create_scheduled_job, update_collection_resource_group and
upload_attachment.
"""

from collections.abc import Mapping

from fastapi import APIRouter, Request

from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import NotOffered

router = APIRouter(route_class=RawRoute)

_PAPERS = "papers are not kept here; link to them in a model's card"
_SCHEDULES = "programs of users do not run here; this hub's own jobs merge and port, at /api/jobs"

REASONS: Mapping[str, str] = {
    "/api/papers/{rest:path}": _PAPERS,
    "/api/daily_papers": _PAPERS,
    "/api/scheduled-jobs/{rest:path}": _SCHEDULES,
    "/api/collections/{namespace}/{slug}/resource-group": (
        "there are no resource groups here; make the collection private, or an organisation's"
    ),
    "/uploads": "files are not kept beside repositories; commit the file to one and link to it",
}
"""Route -> why there is nothing."""


async def _refuse(request: Request) -> None:
    """Raises NotOffered."""
    raise NotOffered(REASONS[request.scope["route"].path])


for _path in REASONS:
    router.add_api_route(_path, _refuse, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
