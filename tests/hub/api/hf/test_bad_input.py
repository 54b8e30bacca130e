"""What a broken or hostile client sends: 4xx with a code, in words that name the thing, and nothing stored."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import Response
from starlette.testclient import TestClient

from adapterhub.hub.context import Hub

Json = dict[str, Any]


@pytest.fixture
def repo(admin_client: TestClient) -> str:
    """A fresh repository of the administrator's."""
    admin_client.post("/api/repos/create", json={"name": "r", "organization": "ann"}).raise_for_status()
    return "ann/r"


@pytest.fixture
def stored(client: TestClient) -> Callable[[], tuple[list[str], list[Path]]]:
    """What rests in the store and in the spool."""
    app = client.app
    assert isinstance(app, FastAPI)
    hub: Hub = app.state.hub

    def look() -> tuple[list[str], list[Path]]:
        spool = [path for path in (hub.settings.data / "spool").rglob("*") if path.is_file()]
        return [stat.digest for stat in hub.store.list()], spool

    return look


def commit(client: TestClient, repo: str, *lines: Json | str, branch: str = "main") -> Response:
    header: Json = {"key": "header", "value": {"summary": "s"}}
    body = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in (header, *lines))
    return client.post(f"/api/models/{repo}/commit/{branch}", content=body)


def file(path: str, content: bytes) -> Json:
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}}


def upload(client: TestClient, repo: str, content: bytes, *, announced: bytes | None = None) -> Response:
    """PUT `content` to a link for `announced`, by default for itself."""
    named = content if announced is None else announced
    oid = hashlib.sha256(named).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(named)}]}
    reply = client.post(f"/{repo}.git/info/lfs/objects/batch", json=batch)
    return client.put(reply.json()["objects"][0]["actions"]["upload"]["href"], content=content)


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", ".git/config", "a\\b", "a\0b", "x.", "CON", ""])
def test_a_path_that_leaves_the_repository_is_refused(
    admin_client: TestClient, repo: str, stored: Callable[[], object], path: str
) -> None:
    before = stored()
    reply = commit(admin_client, repo, file(path, b"x"))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "InvalidPath")
    asked = admin_client.post(f"/api/models/{repo}/preupload/main", json={"files": [{"path": path, "size": 1}]})
    assert (asked.status_code, asked.headers["X-Error-Code"]) == (400, "InvalidPath")
    assert stored() == before


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("not json", "line 2"),
        ("[1]", "line 2"),
        ('{"key": "unknown", "value": {}}', "unknown"),
        ('{"key": "file", "value": {"path": "a"}}', "content"),
        ('{"key": "file", "value": {"path": "a", "content": "%%%"}}', "base64"),
        ('{"key": "file", "value": {"path": "a", "content": "", "encoding": "utf-8"}}', "utf-8"),
        ('{"key": "lfsFile", "value": {"path": "a", "oid": "' + "0" * 64 + '", "algo": "md5"}}', "md5"),
        ("[" * 50_000, "line 2"),
    ],
)
def test_a_line_that_is_no_operation_is_named(admin_client: TestClient, repo: str, line: str, named: str) -> None:
    reply = commit(admin_client, repo, line)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "InvalidCommit")
    assert named in reply.json()["error"]


def test_a_commit_without_a_header_is_refused(admin_client: TestClient, repo: str) -> None:
    for body in (b"", json.dumps(file("a", b"x")).encode()):
        reply = admin_client.post(f"/api/models/{repo}/commit/main", content=body)
        assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "InvalidCommit")


def test_a_line_larger_than_a_regular_file_may_be_is_refused(admin_client: TestClient, repo: str) -> None:
    reply = commit(admin_client, repo, file("a", b"x" * 100_000))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (413, "TooLarge")
    reply = commit(admin_client, repo, file("a", b"x" * 1025))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (413, "TooLarge")


def test_an_unparsable_card_is_refused(admin_client: TestClient, repo: str) -> None:
    before = admin_client.get(f"/api/models/{repo}").json()["sha"]
    reply = commit(admin_client, repo, file("README.md", b"---\nlicense: [\n---\n"))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (422, "InvalidCard")
    assert admin_client.get(f"/api/models/{repo}").json()["sha"] == before


def test_a_container_with_bad_offsets_is_refused(admin_client: TestClient, repo: str) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 999]}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 8
    reply = commit(admin_client, repo, file("config.json", b"{}"), file("model.safetensors", content))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (422, "BrokenContainer")
    assert "model.safetensors" in reply.json()["error"]


def test_bytes_other_than_announced_are_refused_and_gone(
    admin_client: TestClient, repo: str, stored: Callable[[], object]
) -> None:
    before = stored()
    reply = upload(admin_client, repo, b"y" * 5000, announced=b"x" * 5000)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "DigestMismatch")
    reply = upload(admin_client, repo, b"x" * 5001, announced=b"x" * 5000)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (413, "TooLarge")
    reply = upload(admin_client, repo, b"x" * 4999, announced=b"x" * 5000)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "DigestMismatch")
    assert stored() == before


def test_an_upload_link_is_for_one_file_only(admin_client: TestClient, repo: str) -> None:
    batch = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}
    reply = admin_client.post(f"/{repo}.git/info/lfs/objects/batch", json=batch).json()
    href = reply["objects"][0]["actions"]["upload"]["href"]
    for forged in (href.replace("0" * 64, "1" * 64), href[:-3] + "abc", href.partition("?")[0] + "?signature="):
        reply = admin_client.put(forged, content=b"x")
        assert (reply.status_code, reply.headers["X-Error-Code"]) == (401, "InvalidToken")


def test_objects_that_cannot_be_are_refused_one_by_one(admin_client: TestClient, repo: str) -> None:
    objects = [{"oid": "../../etc", "size": 1}, {"oid": "0" * 64, "size": 1 << 60}, {"oid": "1" * 64, "size": 1}]
    batch = {"operation": "upload", "objects": objects}
    found = admin_client.post(f"/{repo}.git/info/lfs/objects/batch", json=batch).json()["objects"]
    assert [each.get("error", {}).get("code") for each in found] == [400, 413, None]


def test_knowing_a_digest_opens_nothing(admin_client: TestClient, repo: str) -> None:
    content = b"secret" * 1000
    assert upload(admin_client, repo, content).status_code == 200
    admin_client.post("/api/repos/create", json={"name": "other", "organization": "ann"}).raise_for_status()
    oid = hashlib.sha256(content).hexdigest()
    line = {"key": "lfsFile", "value": {"path": "a.bin", "oid": oid, "size": len(content)}}
    assert commit(admin_client, "ann/other", line).headers["X-Error-Code"] == "InvalidCommit"
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
    found = admin_client.post("/ann/other.git/info/lfs/objects/batch", json=batch).json()["objects"][0]
    assert "upload" in found["actions"]
    verified = admin_client.post("/ann/other.git/info/lfs/objects/verify", json={"oid": oid, "size": len(content)})
    assert verified.status_code == 400
    assert commit(admin_client, repo, line).status_code == 200


def test_writing_needs_a_token_and_the_right(admin_client: TestClient, repo: str) -> None:
    anonymous = {"Authorization": ""}
    del admin_client.headers["Authorization"]
    reply = commit(admin_client, repo, file("a", b"x"))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (401, "NotAuthenticated")
    reply = admin_client.get(f"/api/models/{repo}/xet-write-token/main")
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (401, "NotAuthenticated")
    reply = admin_client.get(f"/api/models/{repo}", headers=anonymous)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (401, "InvalidToken")


def test_a_name_encoded_wrongly_is_refused(admin_client: TestClient, repo: str) -> None:
    reply = admin_client.get(f"/{repo}/resolve/main/%FF%FE")
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "InvalidRequest")
    for path in ("..%2f..%2fsecret", "%252e%252e%252fsecret", "a%00b"):
        assert admin_client.get(f"/{repo}/resolve/main/{path}").headers["X-Error-Code"] == "EntryNotFound"


def test_a_card_is_validated_as_the_client_expects(admin_client: TestClient) -> None:
    def asked(content: str, repo_type: str = "model") -> Response:
        return admin_client.post("/api/validate-yaml", json={"content": content, "repoType": repo_type})

    sound = asked("---\nlicense: mit\n---\n")
    assert (sound.status_code, sound.json()) == (200, {"errors": [], "warnings": []})
    assert asked("# no front matter").json()["warnings"]
    for repo_type in ("dataset", "space", "kernel"):
        assert asked("# no front matter", repo_type).json() == {"errors": [], "warnings": []}
    for repo_type in ("model", "dataset"):
        broken = asked("---\nlicense: [\n---\n", repo_type)
        assert broken.status_code == 400
        assert "README.md line" in broken.json()["errors"][0]["message"]


def test_an_index_that_is_none_is_refused(admin_client: TestClient, repo: str) -> None:
    index = json.dumps({"weight_map": {"w": "missing.safetensors"}}).encode()
    lines = [file("config.json", b"{}"), file("a.safetensors.index.json", index), file("deep/x.txt", b"x")]
    commit(admin_client, repo, *lines).raise_for_status()
    for path, code in (
        ("config.json", "InvalidRequest"),
        ("a.safetensors.index.json", "InvalidRequest"),
        ("deep/x.txt", "InvalidRequest"),
        ("deep", "EntryNotFound"),
        ("nothing.json", "EntryNotFound"),
    ):
        reply = admin_client.get(f"/api/models/{repo}/safetensors-metadata/{path}")
        assert reply.headers["X-Error-Code"] == code, path
