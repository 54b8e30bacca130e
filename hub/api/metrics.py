"""GET /metrics for Prometheus, and the measuring of requests for models."""

import asyncio
from time import monotonic

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.hub.errors import Unavailable
from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.meters import Meters
from adapterhub.hub.serving.protocol import Json

router = APIRouter(tags=["health"])

ENGINE_S = 2.0
"""Seconds that a scrape waits for the engine's own numbers."""
_SERVING = frozenset({"openai", "lorax", "tasks"})
"""Tags of routes at which models are asked."""
GONE = 499
"""The status of an answer whose caller hung up before it began."""


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Show what was served so far, in Prometheus' text format. Open to all who reach the server: it names nobody."""
    meters: Meters = request.app.state.meters
    return Response(meters.exposed(await _state(request.app.state.engines)), media_type=CONTENT_TYPE_LATEST)


async def _state(engine: EngineClient) -> Json | None:
    if not engine.is_ready:
        return None
    try:
        return await asyncio.wait_for(engine.state(), ENGINE_S)
    except (TimeoutError, Unavailable):
        return None


class RequestMeter:
    """Counts and times the requests at which a model is asked, by the pattern of their route."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and note what became of it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        status, code, began = GONE, None, monotonic()

        async def noted(message: Message) -> None:
            nonlocal status, code
            if message["type"] == "http.response.start":
                status = message["status"]
                code = Headers(raw=message["headers"]).get("x-error-code")
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = scope.get("route")
            if isinstance(route, APIRoute) and not _SERVING.isdisjoint(route.tags):
                self.meters.requests.labels(route.path_format, status).inc()
                self.meters.seconds.labels(route.path_format).observe(monotonic() - began)
                if code is not None:
                    self.meters.errors.labels(code).inc()
