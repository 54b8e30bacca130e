"""Refusals, as the clients raise them; and that what is private answers as what is not there, to the byte."""

from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import Run, scenario_runner
from tests.clients.server import Server, running

MODULE = "tests.clients.scenarios_errors"
ROUTES = [
    ("GET", "/api/models/{repo}"),
    ("GET", "/api/models/{repo}/revision/main"),
    ("GET", "/api/models/{repo}/tree/main?recursive=true"),
    ("POST", "/api/models/{repo}/paths-info/main"),
    ("GET", "/api/models/{repo}/refs"),
    ("GET", "/api/models/{repo}/commits/main"),
    ("POST", "/api/models/{repo}/preupload/main"),
    ("POST", "/api/models/{repo}/commit/main"),
    ("POST", "/api/models/{repo}/branch/x"),
    ("DELETE", "/api/models/{repo}/branch/main"),
    ("POST", "/api/models/{repo}/tag/main"),
    ("PUT", "/api/models/{repo}/settings"),
    ("GET", "/api/models/{repo}/auth-check"),
    ("GET", "/api/models/{repo}/xet-write-token/main"),
    ("GET", "/api/models/{repo}/lfs-files"),
    ("GET", "/api/models/{repo}/safetensors-metadata/model.safetensors.index.json"),
    ("POST", "/{repo}.git/info/lfs/objects/batch"),
    ("GET", "/{repo}/info/refs?service=git-upload-pack"),
    ("HEAD", "/{repo}/resolve/main/.gitattributes"),
    ("GET", "/{repo}/resolve/main/.gitattributes"),
    ("GET", "/{repo}"),
]
BODIES = {
    "paths-info": {"data": {"paths": ".gitattributes"}},
    "preupload": {"json": {"files": [{"path": "a", "sample": "", "size": 0}]}},
    "commit": {"content": b'{"key":"header","value":{"summary":"s"}}\n'},
    "branch": {"json": {}},
    "tag": {"json": {"tag": "t"}},
    "settings": {"json": {"private": False}},
    "objects": {"json": {"operation": "upload", "objects": []}},
}


def test_each_refusal_is_raised_as_the_clients_own_class(run_scenario: Run, repo_id: str) -> None:
    run_scenario("every_class", repo_id, module=MODULE)


def test_a_file_above_the_limit_is_refused_before_it_is_sent(tmp_path: Path, python: Path, repo_id: str) -> None:
    with running(tmp_path / "data", file_max_bytes=str(2 << 20)) as server:
        scenario_runner(server, tmp_path / "hf", python)("too_large", repo_id, module=MODULE, xet=False)
        assert server.unfinished() == []


@pytest.mark.parametrize("as_user", [True, False], ids=["user", "anonymous"])
def test_a_private_repository_answers_as_a_missing_one_to_the_byte(
    server: Server, repo_id: str, *, as_user: bool
) -> None:
    private, missing = f"{repo_id}-1", f"{repo_id}-2"
    headers = {"X-Request-Id": "the-same"}
    with server.http() as http:
        namespace, name = private.split("/")
        made = {"name": name, "organization": namespace, "private": True}
        http.post("/api/repos/create", json=made).raise_for_status()
        if as_user:
            user = http.post("/api/admin/users", json={"name": f"u{name}"}).raise_for_status().json()
            headers["Authorization"] = f"Bearer {user['token']}"
    with httpx.Client(base_url=server.url, headers=headers) as http:
        for method, path in ROUTES:
            answers = [_answer(http, method, path, repo) for repo in (private, missing)]
            assert answers[0] == answers[1], (method, path)
            assert answers[0][0] in (401, 404), (method, path)


def _answer(http: httpx.Client, method: str, path: str, repo: str) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Status, body and headers in their order, but for the date, with the name of the repository taken out."""
    body = next((given for part, given in BODIES.items() if f"/{part}" in path and method != "GET"), {})
    answer = http.request(method, path.format(repo=repo), **body)  # type: ignore[arg-type]
    headers = [(key, value.replace(repo, "NAME")) for key, value in answer.headers.multi_items() if key != "date"]
    return answer.status_code, answer.content.replace(repo.encode(), b"NAME"), headers
