"""Is the service there, and can it work."""

from fastapi import APIRouter, Request
from sqlalchemy import text

from adapterhub import __version__
from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import EngineUnavailable
from adapterhub.hub.serving.probing import Probing

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
async def ready(request: Request, hub: HubDep) -> dict[str, str | int]:
    """200 once models can be served too: each base in memory is as it was loaded, and has generated a token.

    The bases are looked at every ten seconds at most. Raises DatabaseBusy, and EngineUnavailable while the engine
    starts, where it does not answer, and where a base is not what it was.
    """
    await threads.run(_look, hub)
    answer: dict[str, str | int] = {"status": "ok", "version": __version__, "engine": hub.settings.engine}
    if hub.settings.engine == "none":
        return answer
    if not request.app.state.engines.is_ready:
        raise EngineUnavailable("the engine is starting")
    probing: Probing = request.app.state.probing
    return {**answer, "bases": await probing.outcome()}


def _look(hub: Hub) -> None:
    with hub.db.read() as session:
        session.execute(text("SELECT 1"))
