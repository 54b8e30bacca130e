"""The web process, wired: `create_app(settings)` and nothing else. It never imports torch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from adapterhub import __version__
from adapterhub.hub.api import docs, errors, health, hf, metrics, openai, rest
from adapterhub.hub.api.hf import xet
from adapterhub.hub.api.metrics import RequestMeter
from adapterhub.hub.api.middleware import RequestContext, RequestGuard, allowed_hosts
from adapterhub.hub.jobs.process import ProcessExecutor
from adapterhub.hub.services import warming
from adapterhub.hub.services.wiring import open_hub, worker_environment
from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.engines.external import ExternalEngine
from adapterhub.hub.serving.meters import Meters
from adapterhub.hub.serving.probing import Probing
from adapterhub.hub.settings import Settings
from adapterhub.hub.web import forms, merge_pages, pages, recipe_pages, talk

ROUTERS = (xet.protocol, health.router, metrics.router, docs.router, rest.router, openai.router, hf.router)
"""In the order they are asked: a name of a page or route is reserved, so none of them hides a repository."""


def create_app(settings: Settings) -> FastAPI:
    """The service on the data folder of `settings`: migrated, opened, and ready to be run by an ASGI server.

    The engine and the job processes start and stop with the application's lifespan. Raises as `wiring.open_hub`.
    """
    app = FastAPI(
        title="adapterhub",
        version=__version__,
        summary="A hub for adapters and other patches of large models: store, merge, port, serve.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.openapi_version = "3.0.3"  # the newest that the vendored page can show
    app.state.hub = hub = open_hub(settings)
    app.state.engines = (ExternalEngine if settings.engine == "external" else EngineClient)(settings)
    app.state.probing = Probing(app.state.engines.probe)
    app.state.meters = Meters()
    app.state.workers = ProcessExecutor(hub.jobs, settings.workers, worker_environment(settings))
    errors.install(app, pages.error_page)
    for router in ROUTERS:
        app.include_router(router)
    docs.mount_assets(app)
    app.mount("/static", pages.static_files())
    app.include_router(forms.router)
    app.include_router(talk.router)
    app.include_router(recipe_pages.router)
    app.include_router(merge_pages.router)
    app.include_router(pages.router)  # last: its /{owner}/{name} would take the assets for a repository
    app.add_middleware(RequestGuard, hosts=allowed_hosts(settings))
    app.add_middleware(RequestContext)
    app.add_middleware(RequestMeter, meters=app.state.meters)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The engine and the job processes live between start and stop; they end before the database closes."""
    async with AsyncExitStack() as stack:
        stack.callback(app.state.hub.db.close)
        for process in (app.state.engines, app.state.workers):
            stack.push_async_callback(process.stop)
            await process.start()
        loading = asyncio.create_task(warming.warm(app.state.hub, app.state.engines), name="warm")
        stack.callback(loading.cancel)
        yield
