"""Our own REST on a real server in a thread of this process, with an administrator, a user and a stranger."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from sqlmodel import Session

from adapterhub.hub.app import create_app
from adapterhub.hub.context import Hub
from adapterhub.hub.services import accounts
from adapterhub.hub.services.access import Caller, authenticate
from adapterhub.hub.settings import Settings
from tests.hub.conftest import make_admin


@dataclass
class Site:
    """A served hub. tokens: by account name."""

    hub: Hub
    url: str
    tokens: dict[str, str]
    clients: dict[str | None, httpx.Client] = field(default_factory=dict)

    def client(self, name: str | None = "maria") -> httpx.Client:
        """The client of that account, None for the anonymous."""
        if name not in self.clients:
            headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
            self.clients[name] = httpx.Client(base_url=self.url, headers=headers, timeout=60)
        return self.clients[name]

    def caller(self, name: str) -> Caller:
        with self.hub.db.read() as session:
            return authenticate(session, f"Bearer {self.tokens[name]}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    settings = Settings(data=tmp_path / "data", engine="none", workers=0, regular_max_bytes=64 * 1024)
    app = create_app(settings)
    hub = app.state.hub
    tokens = _tokens(hub, make_admin(hub))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    served = Site(hub, f"http://127.0.0.1:{port}", tokens)
    yield served
    for client in served.clients.values():
        client.close()
    server.should_exit = True
    thread.join()


def _tokens(hub: Hub, admin: Caller) -> dict[str, str]:
    def work(session: Session) -> dict[str, str]:
        boss = accounts.create_user(session, admin, "boss", is_admin=True)
        issued = {"boss": accounts.issue_token(session, admin, boss, "test", "admin")[1]}
        for name in ("maria", "stranger"):
            account = accounts.create_user(session, admin, name)
            issued[name] = accounts.issue_token(session, admin, account, "test", "write")[1]
        return issued

    return hub.db.transact(work)
