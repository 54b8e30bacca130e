"""A client or a server that dies in the middle of an upload leaves nothing that anybody can see."""

import hashlib
import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.clients.server import Server, running

pytestmark = pytest.mark.slow

MIB = 1 << 20


def _begin_upload(server: Server, repo_id: str, content: bytes) -> str:
    """The path of a link to upload `content` to a fresh repository."""
    with server.http() as http:
        namespace, name = repo_id.split("/")
        http.post("/api/repos/create", json={"name": name, "organization": namespace}).raise_for_status()
        oid = hashlib.sha256(content).hexdigest()
        batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
        reply = http.post(f"/{repo_id}.git/info/lfs/objects/batch", json=batch).raise_for_status()
        href: str = reply.json()["objects"][0]["actions"]["upload"]["href"]
        return href.removeprefix(server.url)


def _send_half(server: Server, path: str, content: bytes) -> None:
    """Send half of `content` to `path`, wait until the server has some of it on disk, and hang up."""
    with server.connect() as connection:
        head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[: len(content) // 2])
        while not any(file.stat().st_size for file in server.unfinished()):
            os.sched_yield()


def _head(server: Server, repo_id: str) -> str:
    with server.http() as http:
        sha: str = http.get(f"/api/models/{repo_id}").json()["sha"]
        return sha


def test_a_client_that_hangs_up_leaves_nothing(server: Server, repo_id: str) -> None:
    content = os.urandom(16 * MIB)
    path = _begin_upload(server, repo_id, content)
    before = server.blobs()
    _send_half(server, path, content)
    while server.unfinished():
        os.sched_yield()
    assert server.blobs() == before
    with server.http() as http:
        line = {"key": "lfsFile", "value": {"path": "a.bin", "oid": hashlib.sha256(content).hexdigest(), "size": 1}}
        assert _commit(http, repo_id, line) == "InvalidCommit"


def test_a_commit_cut_off_leaves_the_branch_where_it_was(server: Server, repo_id: str) -> None:
    _begin_upload(server, repo_id, b"x" * 2048)
    before = _head(server, repo_id)
    body = b'{"key":"header","value":{"summary":"s"}}\n{"key":"file","value":{"path":"a","content":"'
    with server.connect() as connection:
        head = (
            f"POST /api/models/{repo_id}/commit/main HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {server.token}\r\nContent-Length: {8 * MIB}\r\n\r\n"
        )
        connection.sendall(head.encode() + body + b"A" * 4 * MIB)
    assert _head(server, repo_id) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_server_that_dies_in_an_upload_starts_again_with_nothing_of_it(
    tmp_path: Path, repo_id: str, how: signal.Signals
) -> None:
    content = os.urandom(16 * MIB)
    with running(tmp_path / "data") as server:
        path = _begin_upload(server, repo_id, content)
        before, head = server.blobs(), _head(server, repo_id)
        _send_half(server, path, content)
        server.stop(how)
    with running(tmp_path / "data") as server:
        assert server.blobs() == before
        assert _head(server, repo_id) == head
        with server.http() as http:
            line = {"key": "lfsFile", "value": {"path": "a.bin", "oid": hashlib.sha256(content).hexdigest()}}
            assert _commit(http, repo_id, line) == "InvalidCommit"


def _commit(http: httpx.Client, repo_id: str, line: object) -> str:
    """The code with which a commit of that line is refused."""
    body = "\n".join(json.dumps(each) for each in ({"key": "header", "value": {"summary": "s"}}, line))
    reply = http.post(f"/api/models/{repo_id}/commit/main", content=body)
    return str(reply.headers["X-Error-Code"])
