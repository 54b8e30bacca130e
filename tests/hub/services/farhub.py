"""A second adapterhub, a real one in a process of its own, for what mirrors take from it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapterhub.hub.services.commits import AddRegular
from tests.clients.server import Server, running


@dataclass(frozen=True)
class FarHub:
    """The server, its administrator named far, and what a test makes there."""

    server: Server
    http: httpx.Client

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def told(self) -> dict[str, object]:
        """The settings of a hub that mirrors it and looks again at every read."""
        return {"mirror_url": self.url, "outbound_allow": "127.0.0.1", "mirror_ttl_s": 0, "mirror_missing_ttl_s": 0}

    def push(self, name: str, files: Sequence[AddRegular], *, private: bool = False) -> None:
        """A repository of that name, of the administrator's, made where there is none."""
        created = self.http.post("/api/repos/create", json={"name": name, "type": "model"})
        assert created.status_code in (200, 409), created.text
        self.settings(name, private=private, gated=False)
        for file in files:
            self._ask("PUT", f"/api/patches/far/{name}/files/{file.path}", content=file.content)

    def settings(self, name: str, **wanted: object) -> None:
        """Change what the repository is there: private, gated."""
        self._ask("PUT", f"/api/models/far/{name}/settings", json=wanted)

    def delete(self, name: str) -> None:
        self._ask("DELETE", "/api/repos/delete", json={"name": name, "type": "model"})

    def token(self, name: str, role: str = "read") -> str:
        """A fresh token of the administrator's account there."""
        return str(self._ask("POST", "/api/tokens", json={"name": name, "role": role}).json()["token"])

    def revoke(self, name: str) -> None:
        """End the token of that name."""
        self._ask("DELETE", f"/api/tokens/{name}")

    def _ask(self, method: str, path: str, **sent: object) -> httpx.Response:
        answer = self.http.request(method, path, **sent)  # type: ignore[arg-type]
        answer.raise_for_status()
        return answer


@contextmanager
def far_hub(data: Path, **settings: str) -> Iterator[FarHub]:
    """A hub on `data`, files above 1024 bytes being large."""
    with running(data, admin_name="far", regular_max_bytes="1024", **settings) as server, server.http() as http:
        yield FarHub(server, http)
