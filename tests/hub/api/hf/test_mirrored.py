"""Every route that sends a mirrored file fetches it first: resolve, plain REST, the tar of a revision, git-lfs."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from adapterhub.hub.app import create_app
from adapterhub.hub.services import accounts
from adapterhub.hub.services.commits import AddRegular
from adapterhub.hub.settings import Settings
from tests.hub.api.conftest import TOKEN
from tests.hub.services.farhub import FarHub, far_hub
from tests.hub.services.samples import model

pytestmark = pytest.mark.slow

NAME = "far/base"
WEIGHTS = {file.path: file.content for file in model()}["model.safetensors"]
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarHub]:
    """Another hub with one base."""
    with far_hub(tmp_path_factory.mktemp("far") / "data") as far:
        far.push("base", model())
        yield far


@pytest.fixture
def near(far: FarHub, tmp_path: Path) -> Iterator[TestClient]:
    """An administrator's client of a hub that mirrors it, and has seen the base but none of its weights."""
    told = {**far.told, "data": tmp_path / "data", "engine": "none", "workers": 0, "admin_token": SecretStr(TOKEN)}
    app = create_app(Settings.model_validate(told))
    app.state.hub.db.transact(lambda session: accounts.first_admin(session, "ann", TOKEN))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert client.get(f"/api/models/{NAME}").status_code == 200
        assert client.app.state.hub.store.stat(f"sha256:{SHA256}") is None  # type: ignore[attr-defined]
        yield client


@pytest.mark.parametrize("path", [f"/{NAME}/resolve/main", f"/api/patches/{NAME}/files"])
def test_a_file_is_fetched_and_sent(near: TestClient, path: str) -> None:
    assert near.head(f"{path}/model.safetensors").status_code == 200
    assert near.get(f"{path}/model.safetensors", headers={"Range": "bytes=8-15"}).content == WEIGHTS[8:16]
    assert near.get(f"{path}/model.safetensors").content == WEIGHTS


def test_a_revision_is_fetched_and_sent_as_one_tar(near: TestClient) -> None:
    with tarfile.open(fileobj=io.BytesIO(near.get(f"/api/patches/{NAME}/archive").content)) as tar:
        (name,) = (one for one in tar.getnames() if one.endswith("model.safetensors"))
        found = tar.extractfile(name)
        assert found is not None
        assert found.read() == WEIGHTS


@pytest.mark.parametrize("path", ["/files/model.safetensors", "/archive", ""])
def test_a_repository_that_nobody_read_yet_is_fetched_by_plain_rest_too(
    near: TestClient, far: FarHub, path: str
) -> None:
    name = f"fresh-{len(path)}"
    far.push(name, model())
    assert near.get(f"/api/patches/far/{name}{path}").status_code == 200


def test_a_conversation_with_a_base_that_is_on_its_way_is_told_to_wait(near: TestClient) -> None:
    asked = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
    answer = near.post("/v1/chat/completions", json=asked)
    assert (answer.status_code, answer.headers["x-error-code"]) == (503, "NotFetched")
    assert int(answer.headers["retry-after"]) > 0
    assert "1 of its files" in answer.json()["error"]["message"]


def batch(near: TestClient, oid: str) -> dict[str, object]:
    asked = {"operation": "download", "objects": [{"oid": oid, "size": len(WEIGHTS)}]}
    answer = near.post(f"/{NAME}.git/info/lfs/objects/batch", json=asked)
    assert answer.status_code == 200
    found: dict[str, object] = answer.json()["objects"][0]
    return found


def test_git_lfs_is_given_a_link_that_fetches(near: TestClient) -> None:
    actions = batch(near, SHA256)["actions"]
    assert isinstance(actions, dict)
    href = actions["download"]["href"].removeprefix("http://127.0.0.1:8000")
    assert near.head(href).headers["content-length"] == str(len(WEIGHTS))
    assert near.get(href).content == WEIGHTS


def test_git_lfs_is_given_no_link_to_what_the_mirror_does_not_name(near: TestClient) -> None:
    assert batch(near, "0" * 64)["error"]


def test_the_headers_of_shards_are_read_where_they_are(near: TestClient, far: FarHub) -> None:
    config, weights = model()
    index = b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}'
    shards = [AddRegular("model-1.safetensors", weights.content), AddRegular("model.safetensors.index.json", index)]
    far.push("sharded", [config, *shards])
    answer = near.get("/api/models/far/sharded/safetensors-metadata/model.safetensors.index.json")
    assert answer.status_code == 200
    assert "model-1.safetensors" in answer.json()["headers"]
    assert near.app.state.hub.store.stat(f"sha256:{SHA256}") is None  # type: ignore[attr-defined]
