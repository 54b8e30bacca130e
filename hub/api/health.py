"""Is the service there, and can it work."""

from fastapi import APIRouter, Request
from sqlalchemy import text

from adapterhub import __version__
from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import EngineUnavailable

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(hub: HubDep) -> dict[str, str]:
    """200 once requests can be served. Raises DatabaseBusy or StoreUnavailable where they cannot."""
    await threads.run(_look, hub)
    return {"status": "ok", "version": __version__}


@router.get("/health/live")
async def live() -> dict[str, str]:
    """200 while the process answers at all."""
    return {"status": "ok", "version": __version__}


@router.get("/health/ready")
async def ready(request: Request, hub: HubDep) -> dict[str, str]:
    """200 once models can be served too. Raises DatabaseBusy, and EngineUnavailable while the engine starts."""
    await threads.run(_look, hub)
    if hub.settings.engine != "none" and not request.app.state.engines.is_ready:
        raise EngineUnavailable("the engine is starting")
    return {"status": "ok", "version": __version__, "engine": hub.settings.engine}


def _look(hub: Hub) -> None:
    with hub.db.read() as session:
        session.execute(text("SELECT 1"))
