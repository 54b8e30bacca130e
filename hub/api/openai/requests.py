"""What the routes of this dialect share: the engine, the variant asked for, and callers who hang up."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from adapterhub.hub.api import threads
from adapterhub.hub.context import Hub
from adapterhub.hub.services import variants
from adapterhub.hub.services.access import Caller
from adapterhub.hub.serving.meters import Measured
from adapterhub.hub.serving.protocol import Event, Started, VariantSpec

T = TypeVar("T")


def engine(request: Request) -> Measured:
    """The engine of this process, measured."""
    return Measured(request.app.state.engines, request.app.state.meters)


EngineDep = Annotated[Measured, Depends(engine)]


def named(spec: VariantSpec) -> dict[str, str]:
    """The headers that tell which recipe answered, whose digest names it again, as `model="vid:..."`, and which of its
    models are known by a list of the likeliest tokens alone."""
    elsewhere = ((one.expression, one.endpoint) for one in spec.models if one.endpoint is not None)
    told = "; ".join(f"{name}: {there.logprobs} log probabilities a token" for name, there in elsewhere)
    return {"X-Adapterhub-Variant": spec.vid} | ({"X-Adapterhub-Approximate": told} if told else {})


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
