"""`adapterhub serve`: from settings to a listening server, and to its end on SIGTERM."""

import ctypes
import signal
import socket
import sys
from contextlib import suppress

import structlog
import uvicorn
from sqlmodel import Session

from adapterhub.hub import logging
from adapterhub.hub.api.middleware import is_loopback
from adapterhub.hub.app import create_app
from adapterhub.hub.connections import Connection
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import InvalidRequest, Unavailable
from adapterhub.hub.services import accounts
from adapterhub.hub.services.secret import write_private
from adapterhub.hub.settings import Settings

ADMIN_TOKEN_FILE = "first-admin-token"  # noqa: S105
KEPT_BYTES = 32 << 20
"""Freed memory that this process keeps for its next buffers, at most."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
STOP_GRACE_S = 20
"""Seconds that requests in flight have to end after SIGTERM."""

_log = structlog.get_logger("adapterhub.start")


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed buffers: by itself it returns each to the kernel, whose fresh pages cost more CPU
    than the copy into them (an upload took a fifth less without).
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let requests in flight end.

    The first start makes an administrator, whose token goes to the terminal once, or to a file of the data folder that
    only its owner may read. Raises InvalidRequest for a public address without a secret; Unavailable when the address
    is taken; and as `create_app`.
    """
    refuse_public_address_without_secret(settings)
    logging.configure(settings)
    _keep_freed_memory()
    app = create_app(settings)
    announce_first_admin(app.state.hub)
    with listen(settings) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _say(f"adapterhub is at {settings.public_url or url} (data in {settings.data})")
        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_GRACE_S,
            timeout_keep_alive=75,
        )
        # uvicorn raises the signal again once all requests have ended; that is the end asked for, and no failure
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    _log.info("stopped")


def refuse_public_address_without_secret(settings: Settings) -> None:
    """Pass when the server may listen where the settings say. Raises InvalidRequest."""
    if not is_loopback(settings.host) and settings.secret is None:
        raise InvalidRequest(
            f"{settings.host} can be reached from other machines: set ADAPTERHUB_SECRET to at least 32 random "
            "characters, e.g. from `openssl rand -hex 32`"
        )


def announce_first_admin(hub: Hub) -> None:
    """Make the first administrator where there is no account yet, and tell the token once, where settings gave none.

    The file is written before the account is: a crash in between leaves a token that opens nothing, and the next start
    makes another.
    """
    settings = hub.settings
    given = settings.admin_token.get_secret_value() if settings.admin_token else None
    path = None if sys.stderr.isatty() else settings.data / ADMIN_TOKEN_FILE

    def make(session: Session) -> str | None:
        token = accounts.first_admin(session, settings.admin_name, given)
        if path and token and given is None:
            path.unlink(missing_ok=True)
            write_private(path, token + "\n")
        return token

    token = hub.db.transact(make)
    if token and given is None:
        told = f"the token is in {path}" if path else f"token, shown this once: {token}"
        _say(f"first administrator: {settings.admin_name}; {told}")


def listen(settings: Settings) -> socket.socket:
    """The socket that clients connect to. Raises Unavailable when the address is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
        # Accepted sockets inherit it. The event loop would set it only on sockets made with TCP's number, and without
        # it an answer of two packets waits 40 ms for the client's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another ADAPTERHUB_PORT"
        ) from error


def _say(text: str) -> None:
    """Tell the person who started the server; logs are for machines."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
