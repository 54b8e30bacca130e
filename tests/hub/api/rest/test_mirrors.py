"""Tokens for a mirrored hub, and what callers without a token get of a mirror, over HTTP and against a real hub."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from adapterhub.hub.app import create_app
from adapterhub.hub.services import accounts
from adapterhub.hub.settings import Settings
from tests.hub.api.conftest import TOKEN
from tests.hub.services.farhub import FarHub, far_hub
from tests.hub.services.samples import model

pytestmark = pytest.mark.slow

WEIGHTS = {file.path: file.content for file in model()}["model.safetensors"]
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHub]:
    """Another hub with a public and a private base."""
    with far_hub(tmp_path_factory.mktemp("far") / "data") as far:
        far.push("open", model())
        far.push("secret", model(seed=1), private=True)
        yield far


@pytest.fixture
def near(far: FarHub, tmp_path: Path) -> Iterator[TestClient]:
    """A client without a token of a hub that mirrors it, with an organisation of its administrator's."""
    told = {**far.told, "data": tmp_path / "data", "engine": "none", "workers": 0, "admin_token": SecretStr(TOKEN)}
    app = create_app(Settings.model_validate(told))
    app.state.hub.db.transact(lambda session: accounts.first_admin(session, "ann", TOKEN))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        assert client.post("/api/organisations", json={"name": "ours"}, headers=ADMIN).status_code == 201
        yield client


def test_a_token_is_set_listed_without_its_text_and_removed(near: TestClient, far: FarHub) -> None:
    token = far.token("rest")
    path = "/api/organisations/ours/mirror-token"
    assert near.put(path, json={"token": token}).status_code == 401
    assert near.put("/api/organisations/nobody/mirror-token", json={"token": token}, headers=ADMIN).status_code == 404
    assert near.get("/api/models/far/secret", headers=ADMIN).status_code == 404
    assert near.put(path, json={"token": token}, headers=ADMIN).status_code == 204
    listed = near.get("/api/mirror-tokens", headers=ADMIN)
    assert [(one["organisation"], one["source"]) for one in listed.json()["items"]] == [("ours", far.url)]
    assert token not in listed.text
    assert near.get("/api/mirror-tokens").status_code == 401
    assert near.get("/api/models/far/secret", headers=ADMIN).json()["private"] is True
    sent = near.get("/far/secret/resolve/main/model.safetensors", headers=ADMIN)
    assert sent.content == model(seed=1)[1].content
    hidden, unknown = near.get("/api/models/far/secret"), near.get("/api/models/far/nothing")
    assert hidden.status_code == unknown.status_code
    assert hidden.text.replace("secret", "") == unknown.text.replace("nothing", "")
    assert near.delete(path, headers=ADMIN).status_code == 204
    assert near.delete(path, headers=ADMIN).status_code == 404


def test_a_token_of_the_wrong_shape_is_not_repeated(near: TestClient) -> None:
    for token in ("two words", 5, {"a": "canary words"}):
        answer = near.put("/api/organisations/ours/mirror-token", json={"token": token}, headers=ADMIN)
        assert answer.status_code == 400
        assert "words" not in answer.text


def test_without_a_token_what_is_here_is_read_and_nothing_is_fetched(near: TestClient) -> None:
    assert near.get("/api/models/far/open").status_code in (401, 404)
    assert near.get("/api/models/far/open", headers=ADMIN).status_code == 200
    assert near.get("/api/models/far/open").status_code == 200
    refused = near.get("/far/open/resolve/main/model.safetensors")
    assert (refused.status_code, refused.headers["x-error-code"]) == (401, "NotAuthenticated")
    assert "are fetched for who sends a token" in refused.headers["x-error-message"]
    asked = {"operation": "download", "objects": [{"oid": SHA256, "size": len(WEIGHTS)}]}
    batch = "/far/open.git/info/lfs/objects/batch"
    assert near.post(batch, json=asked).json()["objects"][0]["error"]["code"] == 404
    assert near.get("/far/open/resolve/main/model.safetensors", headers=ADMIN).content == WEIGHTS
    assert near.get("/far/open/resolve/main/model.safetensors").content == WEIGHTS
    assert "actions" in near.post(batch, json=asked).json()["objects"][0]
