"""Signing in with a browser: a token, given once, becomes a signed cookie that names the token and not its text."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.responses import Response

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import Forbidden, InvalidToken
from adapterhub.hub.services.access import ANONYMOUS, Caller, authenticate, caller_of_token
from adapterhub.hub.services.signing import seal, unseal

COOKIE = "adapterhub_session"
TTL_S = 7 * 24 * 3600
_PURPOSE = "web session"


async def visitor(request: Request, hub: HubDep) -> Caller:
    """Who looks at the page: by Authorization header, else by cookie, else nobody.

    A cookie that expired, or whose token was revoked since, makes the visitor anonymous instead of failing the page.
    """
    return await threads.run(_visitor, hub, request.headers.get("authorization"), request.cookies.get(COOKIE))


def _visitor(hub: Hub, header: str | None, cookie: str | None) -> Caller:
    with hub.db.read() as session:
        if header is not None or not cookie:
            return authenticate(session, header)
        try:
            return caller_of_token(session, str(unseal(hub.secret, _PURPOSE, cookie)["token_id"]))
        except InvalidToken:
            return ANONYMOUS


def begin(request: Request, response: Response, hub: Hub, caller: Caller) -> None:
    """Set the cookie by which later pages know `caller`.

    HttpOnly keeps scripts from it, SameSite=Lax other sites' forms, and Secure plain connections where this one is not.
    """
    sealed = seal(hub.secret, _PURPOSE, {"token_id": caller.token_id}, TTL_S)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, sealed, max_age=TTL_S, httponly=True, samesite="lax", secure=secure)


def end(response: Response) -> None:
    """Remove the cookie."""
    response.delete_cookie(COOKIE)


def require_same_origin(request: Request) -> None:
    """Pass when a form came from a page of this server. Raises Forbidden for any other origin."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden(f"this form came from {origin}, not from a page of this hub; open the page here and try again")


VisitorDep = Annotated[Caller, Depends(visitor)]
