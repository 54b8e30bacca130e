"""What routes are given: the hub, who calls, and the URL by which clients know this server."""

from typing import Annotated

from fastapi import Depends, Request

from adapterhub.hub.api import threads
from adapterhub.hub.context import Hub
from adapterhub.hub.services.access import Caller, authenticate


def hub(request: Request) -> Hub:
    """The one Hub of this process."""
    found = request.app.state.hub
    assert isinstance(found, Hub)
    return found


async def caller(request: Request) -> Caller:
    """Who sent the request, by its Authorization header; anonymous without one. Raises InvalidToken."""
    return await threads.run(_authenticated, hub(request), request.headers.get("authorization"))


def _authenticated(hub: Hub, header: str | None) -> Caller:
    with hub.db.read() as session:
        return authenticate(session, header)


def public_url(request: Request) -> str:
    """The URL that clients use, without a slash at its end: the configured one, or as the request names it.

    huggingface_hub compares the links it is sent with its own HF_ENDPOINT, so both must name the same host.
    """
    configured = hub(request).settings.public_url
    return (configured or str(request.base_url)).rstrip("/")


HubDep = Annotated[Hub, Depends(hub)]
CallerDep = Annotated[Caller, Depends(caller)]
PublicUrl = Annotated[str, Depends(public_url)]
