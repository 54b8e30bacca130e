"""What happens to every request before and after its route: a request id, guards, one log line, no lost exception."""

import re
import time
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api.errors import domain_response, error_response, header_text
from adapterhub.hub.db.tables import new_id
from adapterhub.hub.errors import InvalidRequest, TooLarge
from adapterhub.hub.settings import Settings

_log = structlog.get_logger("adapterhub.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9=;:._-]{8,128}")

PLAIN_BODY_BYTES = 16 << 20
"""Largest body of a request whose route reads it whole."""

_GIT = re.compile(r"/[^/]+/[^/]+/git-upload-pack")
"""Where a body may be gzip: git packs its longer requests, and the route unpacks them up to a limit of its own."""

_STREAMED = re.compile(r"/api/models/[^/]+/[^/]+/commit/|/xet/|/uploads/|/api/patches/")
"""Paths whose routes read their bodies piece by piece and set limits of their own."""


class RequestContext:
    """Gives each request an id, logs one line when it is over, and turns what nobody caught into a 500.

    The id is the client's (X-Request-Id, or X-Amzn-Trace-Id as huggingface_hub sends it) or a fresh one; it is answered
    as X-Request-Id and stands on every log line of the request. Queries are never logged: signed links carry their
    signature there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request inside its context."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id, scope["state"])
        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, answer.send)
            except ClientDisconnect:
                _log.info("client_disconnected", method=scope["method"], path=scope["path"])
            except Exception:  # the outermost edge of the app
                _log.exception("unhandled_error", method=scope["method"], path=scope["path"])
                if answer.status:
                    raise  # half an answer is out: only a broken connection tells the client
                message = f"an unexpected error; the server's log tells more under request id {request_id}"
                response = error_response(scope["path"], 500, "InternalError", message)
                await response(scope, receive, answer.send)
            finally:
                _log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=answer.status,
                    sent_bytes=answer.sent_bytes,
                    duration_ms=round((time.perf_counter() - started) * 1000, 1),
                )


class _Answer:
    """A `send` that adds the headers of every answer and remembers what went out."""

    def __init__(self, send: Send, request_id: str, state: Mapping[str, Any]) -> None:
        self._send = send
        self._state = state
        self._request_id = request_id
        self.status = 0
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            if "warning" in self._state:
                headers["X-HF-Warning"] = header_text(self._state["warning"])
            headers.setdefault("X-Content-Type-Options", "nosniff")
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)


class RequestGuard:
    """Refuses what no route should see: a foreign Host, an encoded body, a body too large to be read whole.

    hosts: the names this server answers to, None for any. A page of another site that has its own name resolve to this
    machine would otherwise read the hub through the visitor's browser.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(headers)
        except AdapterHubError as error:
            await domain_response(scope["path"], error)(scope, receive, send)
            return
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and not (encoding in ("gzip", "x-gzip") and _GIT.fullmatch(scope["path"])):
            text = "bodies are accepted as they are, without Content-Encoding"
            await error_response(scope["path"], 415, "UnsupportedEncoding", text)(scope, receive, send)
            return
        if not _STREAMED.match(scope["path"]):
            receive = _capped(receive, PLAIN_BODY_BYTES)
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            raise InvalidRequest(f"this server is not {host!r}; set ADAPTERHUB_PUBLIC_URL to the URL that clients use")
        if int(_digits(headers.get("content-length"))) < 0:
            raise InvalidRequest("Content-Length is not a number")


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The Host names a server with these settings answers to; None, any, on an address that is not loopback's.

    With a public URL these are its name and the loopback's, whatever the address.
    """
    if settings.public_url is None and not is_loopback(settings.host):
        return None
    public = urlsplit(settings.public_url or "").hostname
    return frozenset({"localhost", "127.0.0.1", "[::1]", settings.host.lower(), *([public] if public else [])})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _digits(text: str | None) -> str:
    return "0" if text is None else text if text.isascii() and text.isdigit() else "-1"


def _host_name(host: str) -> str:
    """`host` without its port, in lower case; brackets of an IPv6 address stay."""
    return re.sub(r":\d*$", "", host.lower())


def _request_id(headers: Headers) -> str:
    for name in ("x-request-id", "x-amzn-trace-id"):
        sent = headers.get(name)
        if sent is not None and _REQUEST_ID.fullmatch(sent):
            return sent
    return new_id()


def _capped(receive: Receive, limit_bytes: int) -> Receive:
    """`receive`, raising TooLarge once more than `limit_bytes` of body have come."""
    received = 0

    async def capped() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit_bytes:
            raise TooLarge(f"the request's body is larger than the {limit_bytes} bytes this route takes")
        return message

    return capped
