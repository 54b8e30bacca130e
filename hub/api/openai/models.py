"""GET /v1/models. Source: platform.openai.com/docs/api-reference/models; root and parent as vLLM lists adapters."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.services import variants

router = APIRouter(tags=["openai"])


@router.get("/v1/models")
async def list_models(hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """List what can be served under a name of its own: models, and patches whose base is here."""
    lines = await threads.run(variants.models, hub, caller)
    return {"object": "list", "data": [_model(line) for line in lines]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, hub: HubDep, caller: CallerDep) -> dict[str, Any]:
    """Show one of the listed models."""
    return _model(await threads.run(variants.model, hub, caller, name))


def _model(line: dict[str, Any]) -> dict[str, Any]:
    base = (line["base"] or {}).get("repository")
    return {
        "id": line["id"],
        "object": "model",
        "created": int(datetime.fromisoformat(line["created_at"]).timestamp()),
        "owned_by": line["id"].partition("/")[0],
        "root": base or line["id"],
        "parent": base,
    }
