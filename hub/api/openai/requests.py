"""What the routes of this dialect share: the engine, the variant asked for, and callers who hang up."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from adapterhub.hub.api import threads
from adapterhub.hub.context import Hub
from adapterhub.hub.services import variants
from adapterhub.hub.services.access import Caller
from adapterhub.hub.serving.protocol import EngineHandle, Event, Started, VariantSpec

T = TypeVar("T")


def engine(request: Request) -> EngineHandle:
    """The engine of this process."""
    return cast(EngineHandle, request.app.state.engines)


EngineDep = Annotated[EngineHandle, Depends(engine)]


def named(spec: VariantSpec) -> dict[str, str]:
    """The header that tells which recipe answered; the digest names it again, as `model="vid:..."`."""
    return {"X-Adapterhub-Variant": spec.vid}


async def variant(hub: Hub, caller: Caller, model: str) -> VariantSpec:
    """What `model` names for this caller. Raises as `variants.served`."""
    return await threads.run(variants.served, hub, caller, model)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when the client hangs up. Raises ClientDisconnect then."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def begun(events: AsyncGenerator[Event, None]) -> Started:
    """The first event, awaited before a reply's status goes out. Raises what the engine refuses."""
    first = await anext(events)
    assert isinstance(first, Started)
    return first
