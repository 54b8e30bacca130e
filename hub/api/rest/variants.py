"""Models brought into the engine's memory before anybody asks them something."""

from fastapi import APIRouter, Request, Response

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai.requests import EngineDep, named, unless_gone, variant
from adapterhub.hub.api.rest.schemas import LoadedVariant, LoadRequest
from adapterhub.hub.errors import Forbidden

router = APIRouter(prefix="/api", tags=["serving"])


@router.post("/variants/load")
async def load_variant(
    body: LoadRequest, request: Request, response: Response, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> LoadedVariant:
    """Merge a model into memory, or find it there; it stays as long as others leave it room. Administrators may pin
    it."""
    if body.pinned and not caller.is_admin:
        raise Forbidden("pinned: only an administrator may keep a model in memory for good; leave it out to load it")
    spec = await variant(hub, caller, body.model)
    loaded = await unless_gone(request, engine.load(spec, pinned=body.pinned))
    response.headers.update(named(spec))
    return LoadedVariant(model=body.model, vid=spec.vid, size_bytes=loaded["size_bytes"], pinned=body.pinned)
