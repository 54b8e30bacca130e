"""GET /v1/models. Source: platform.openai.com/docs/api-reference/models; root and parent as vLLM lists adapters."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai.requests import EngineDep
from adapterhub.hub.services import variants
from adapterhub.hub.services.variants import Listed
from adapterhub.hub.serving.protocol import EngineHandle

router = APIRouter(tags=["openai"])


@router.get("/v1/models")
async def list_models(hub: HubDep, caller: CallerDep, engine: EngineDep) -> dict[str, Any]:
    """List what can be served under a name of its own: models, patches whose base is here, and saved recipes.

    `adapterhub` tells whether each is in memory, and its bytes there.
    """
    found = await threads.run(variants.models, hub, caller)
    resident = await _resident(engine)
    return {"object": "list", "data": [_model(one, resident) for one in found]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, hub: HubDep, caller: CallerDep, engine: EngineDep) -> dict[str, Any]:
    """Show one of the listed models."""
    return _model(await threads.run(variants.model, hub, caller, name), await _resident(engine))


async def _resident(engine: EngineHandle) -> Mapping[str, int]:
    """Bytes of what is in memory, by name and by digest; nothing while the engine is not up."""
    if not engine.is_ready:
        return {}
    entries = (await engine.state())["resident"]
    return {one[key]: one["size_bytes"] for one in entries for key in ("name", "digest")}


def _model(one: Listed, resident: Mapping[str, int]) -> dict[str, Any]:
    size_bytes = resident.get(one.held_as)
    state = {"state": "cold"} if size_bytes is None else {"state": "resident", "bytes": size_bytes}
    return {
        "id": one.name,
        "object": "model",
        "created": int(datetime.fromisoformat(one.created_at).timestamp()),
        "owned_by": one.owner,
        "root": one.base or one.name,
        "parent": one.base,
        "adapterhub": {**state, "kind": one.kind, "base": one.base},
    }
