"""Twenty things that clients need and that are easily missed, each with its tests.

1. large files of default clients come over Xet
    test_large_files_go_over_xet_unless_it_is_turned_off
2. a quoted revision or path is one segment
    test_a_revision_and_a_folder_with_slashes_are_one_segment_each
3. X-Error-Code, as over plain http it alone chooses the class
    test_a_refusal_carries_its_code_over_plain_http
    test_errors.py::test_each_refusal_is_raised_as_the_clients_own_class
4. the 409 of a repository that exists holds its url
    test_a_repository_that_exists_is_refused_with_its_url
5. uploads carry no token, parts and their completion neither
    test_bytes_are_taken_by_the_link_alone
    test_files.py::test_a_large_file_goes_in_parts_over_lfs
6. every file answers HEAD
    test_a_file_and_its_absence_answer_head_as_get
7. a missing file names the commit
    test_a_file_and_its_absence_answer_head_as_get
8. files are never compressed
    test_a_file_is_sent_as_it_is_whatever_encoding_is_accepted
9. every link begins with the client's endpoint
    test_every_link_begins_with_the_endpoint
10. paths-info is a form, with booleans in either spelling
    test_paths_are_asked_for_in_a_form_with_either_spelling
11. keys that clients read without asking
    test_keys_that_are_read_without_asking_are_there
12. the line of an LFS copy has no size
    test_a_copied_large_file_comes_without_its_size
13. validate-yaml answers JSON, errors too
    test_a_bad_card_is_told_in_json
14. `visibility` and `private`
    test_both_words_for_privacy_are_understood
15. commits are read line by line with a limit
    test_a_commit_takes_less_memory_than_its_body
    ../hub/api/hf/test_bad_input.py::test_a_line_larger_than_a_regular_file_may_be_is_refused
16. an ETag is made of the content alone
    test_an_etag_is_made_of_the_content_alone
17. two who commit at once
    test_of_two_commits_onto_one_parent_one_is_refused_with_412
18. query booleans arrive as words
    test_flags_in_the_query_are_words
19. the link to the next page keeps every filter
    ../hub/api/hf/test_lists.py::test_every_filter_stays_in_the_link
20. author with search and a limit, as `hf models ls` asks
    test_hf_command.py::test_the_hf_command_takes_patterns_lists_and_names_in_any_script
"""

import ast
import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Run
from tests.clients.server import Server

LARGE = bytes(range(256)) * 8192


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as http:
        yield http


@pytest.fixture
def repo(http: httpx.Client, repo_id: str) -> str:
    """A repository with a small file, a large one and a folder."""
    _create(http, repo_id)
    _upload(http, repo_id)
    _commit(http, repo_id, _file("small.txt"), _file("deep/er/c.txt"), _large("large.bin")).raise_for_status()
    return repo_id


def _create(http: httpx.Client, repo_id: str, **more: object) -> httpx.Response:
    namespace, name = repo_id.split("/")
    return http.post("/api/repos/create", json={"name": name, "organization": namespace, **more})


def _file(path: str, content: bytes = b"text") -> dict[str, Any]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def _large(path: str) -> dict[str, Any]:
    """The line of a large file as for a copy: with no size."""
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": hashlib.sha256(LARGE).hexdigest()}}


def _commit(http: httpx.Client, repo_id: str, *lines: object, **header: object) -> httpx.Response:
    told = [{"key": "header", "value": {"summary": "s", **header}}, *lines]
    return http.post(f"/api/models/{repo_id}/commit/main", content="\n".join(map(json.dumps, told)).encode())


def _batch(http: httpx.Client, repo_id: str) -> dict[str, Any]:
    objects = [{"oid": hashlib.sha256(LARGE).hexdigest(), "size": len(LARGE)}]
    asked = {"operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
    reply = http.post(f"/{repo_id}.git/info/lfs/objects/batch", json=asked).raise_for_status()
    one: dict[str, Any] = reply.json()["objects"][0]
    return one


def _upload(http: httpx.Client, repo_id: str) -> int:
    """The status with which the bytes are taken, sent to the link by a client that knows no token."""
    actions = _batch(http, repo_id)["actions"]
    status = httpx.put(actions["upload"]["href"], content=LARGE).status_code
    http.post(actions["verify"]["href"], json={"oid": hashlib.sha256(LARGE).hexdigest(), "size": len(LARGE)})
    return status


def test_each_of_the_twenty_has_a_test_that_exists() -> None:
    told = re.split(r"^(\d+)\. .*$", __doc__ or "", flags=re.M)
    assert [int(number) for number in told[1::2]] == list(range(1, 21))
    for number, tests in zip(told[1::2], told[2::2], strict=True):
        for named in tests.split():
            file, _, name = named.rpartition("::")
            tree = ast.parse((Path(__file__).parent / (file or Path(__file__).name)).read_text())
            assert name in [one.name for one in tree.body if isinstance(one, ast.FunctionDef)], (number, named)
        assert tests.split(), number


@pytest.mark.parametrize(
    ("xet", "used", "unused"), [(True, "/v1/xorbs/", "/uploads/"), (False, "/uploads/", "/v1/xorbs/")]
)
def test_large_files_go_over_xet_unless_it_is_turned_off(
    server: Server, run_scenario: Run, repo_id: str, tmp_path: Path, *, xet: bool, used: str, unused: str
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(2_000_000))
    before = len(server.lines)
    run_scenario("push_large", repo_id, str(path), xet=xet)
    asked = "".join(server.lines[before:])
    assert (used in asked, unused in asked) == (True, False)


def test_a_revision_and_a_folder_with_slashes_are_one_segment_each(http: httpx.Client, repo: str) -> None:
    http.post(f"/api/models/{repo}/branch/feat%2Fx", json={}).raise_for_status()
    assert http.get(f"/api/models/{repo}/revision/feat%2Fx").status_code == 200
    [entry] = http.get(f"/api/models/{repo}/tree/feat%2Fx/deep%2Fer").json()
    assert entry["path"] == "deep/er/c.txt"
    assert http.get(f"/{repo}/resolve/feat%2Fx/deep/er/c.txt").content == b"text"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/admin/no-such-repository", "RepoNotFound"),
        ("/api/models/{repo}/revision/none", "RevisionNotFound"),
        ("/{repo}/resolve/main/none", "EntryNotFound"),
        ("/api/models/{repo}/tree/main/none", "EntryNotFound"),
    ],
)
def test_a_refusal_carries_its_code_over_plain_http(http: httpx.Client, repo: str, path: str, code: str) -> None:
    reply = http.get(path.format(repo=repo))
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (404, code)
    assert reply.json()["error"] == reply.headers["X-Error-Message"]


def test_a_repository_that_exists_is_refused_with_its_url(server: Server, http: httpx.Client, repo: str) -> None:
    reply = _create(http, repo)
    assert (reply.status_code, reply.json()["url"]) == (409, f"{server.url}/{repo}")
    assert "another conflicting operation is in progress" not in reply.text


def test_bytes_are_taken_by_the_link_alone(http: httpx.Client, repo_id: str) -> None:
    _create(http, repo_id).raise_for_status()
    assert _upload(http, repo_id) == 200


def test_a_file_and_its_absence_answer_head_as_get(http: httpx.Client, repo: str) -> None:
    head = http.get(f"/api/models/{repo}").json()["sha"]
    for path, status in (("small.txt", 200), ("large.bin", 200), ("none.txt", 404)):
        told, got = (http.request(method, f"/{repo}/resolve/main/{path}") for method in ("HEAD", "GET"))
        assert (told.status_code, got.status_code, told.content) == (status, status, b"")
        assert told.headers["X-Repo-Commit"] == got.headers["X-Repo-Commit"] == head
        assert told.headers["Content-Length"] == got.headers["Content-Length"] == str(len(got.content))


def test_a_file_is_sent_as_it_is_whatever_encoding_is_accepted(http: httpx.Client, repo: str) -> None:
    reply = http.get(f"/{repo}/resolve/main/large.bin", headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
    assert "Content-Encoding" not in reply.headers
    assert (reply.headers["Content-Length"], reply.content) == (str(len(LARGE)), LARGE)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_every_link_begins_with_the_endpoint(server: Server, http: httpx.Client, repo_id: str, host: str) -> None:
    endpoint = server.url.replace("127.0.0.1", host)
    http.base_url = endpoint
    made = _create(http, repo_id).json()["url"]
    actions = _batch(http, repo_id)["actions"]
    committed = _commit(http, repo_id, _file("a.txt"), _file("b.txt")).json()["commitUrl"]
    following = http.get(f"/api/models/{repo_id}/tree/main?limit=1").links["next"]["url"]
    cas = http.get(f"/api/models/{repo_id}/xet-write-token/main").json()["casUrl"]
    links = [made, actions["upload"]["href"], actions["verify"]["href"], committed, following, cas]
    assert [link for link in links if not link.startswith(f"{endpoint}/")] == []


@pytest.mark.parametrize("expand", ["true", "false", "True", "False"])
def test_paths_are_asked_for_in_a_form_with_either_spelling(http: httpx.Client, repo: str, expand: str) -> None:
    asked = {"paths": ["large.bin", "deep", "none"], "expand": expand}
    large, deep = http.post(f"/api/models/{repo}/paths-info/main", data=asked).json()
    assert (large["type"], large["lfs"]["size"], deep["type"]) == ("file", len(LARGE), "directory")
    assert ("lastCommit" in large) is (expand.lower() == "true")
    listed = http.get(f"/api/models/{repo}/tree/main", params={"recursive": expand, "expand": expand}).json()
    assert ("deep/er/c.txt" in [entry["path"] for entry in listed]) is (expand.lower() == "true")


def test_keys_that_are_read_without_asking_are_there(http: httpx.Client, repo: str) -> None:
    asked = {"files": [{"path": "small.txt", "sample": "", "size": 0}, {"path": "n.bin", "sample": "AA==", "size": 9}]}
    for file in http.post(f"/api/models/{repo}/preupload/main", json=asked).json()["files"]:
        assert file["shouldIgnore"] is False
        assert file["uploadMode"] in ("lfs", "regular")
    refs = http.get(f"/api/models/{repo}/refs").json()
    assert all(isinstance(refs[name], list) for name in ("branches", "tags", "converts"))


def test_a_copied_large_file_comes_without_its_size(http: httpx.Client, repo: str) -> None:
    assert "size" not in _large("copy.bin")["value"]
    _commit(http, repo, _large("copy.bin")).raise_for_status()
    assert http.head(f"/{repo}/resolve/main/copy.bin").headers["X-Linked-Size"] == str(len(LARGE))


def test_a_bad_card_is_told_in_json(http: httpx.Client) -> None:
    reply = http.post("/api/validate-yaml", json={"content": "---\na: [\n---\n", "repoType": "model"})
    assert reply.json()["errors"][0]["message"]
    del http.headers["Authorization"]
    good = http.post("/api/validate-yaml", json={"content": "---\nlicense: mit\n---\n", "repoType": "model"})
    assert (good.status_code, good.json()["errors"]) == (200, [])


@pytest.mark.parametrize(
    ("private", "public"),
    [({"visibility": "private"}, {"visibility": "public"}), ({"private": True}, {"private": False})],
    ids=["newer", "older"],
)
def test_both_words_for_privacy_are_understood(
    http: httpx.Client, repo_id: str, private: dict[str, object], public: dict[str, object]
) -> None:
    def is_private() -> bool:
        return bool(http.get(f"/api/models/{repo_id}").json()["private"])

    _create(http, repo_id, **private).raise_for_status()
    assert is_private()
    for wanted in (public, private):
        http.put(f"/api/models/{repo_id}/settings", json=wanted).raise_for_status()
        assert is_private() is (wanted is private)


def test_a_commit_takes_less_memory_than_its_body(server: Server, http: httpx.Client, repo_id: str) -> None:
    _create(http, repo_id).raise_for_status()
    lines = [_file(f"{n}.txt", n.to_bytes(2, "big") * 500_000) for n in range(96)]
    before = server.reset_peak_memory()
    assert _commit(http, repo_id, *lines).status_code == 200
    assert server.peak_memory() - before < 64 << 20


def test_an_etag_is_made_of_the_content_alone(http: httpx.Client, repo: str) -> None:
    other = f"{repo}-other"
    _create(http, other).raise_for_status()
    _upload(http, other)
    _commit(http, other, _file("named.md"), _large("otherwise.bin")).raise_for_status()
    small, large = hashlib.sha1(b"blob 4\0text").hexdigest(), hashlib.sha256(LARGE).hexdigest()
    for repo_id, names in ((repo, ("small.txt", "large.bin")), (other, ("named.md", "otherwise.bin"))):
        found = [http.head(f"/{repo_id}/resolve/main/{name}").headers["ETag"] for name in names]
        assert found == [f'"{small}"', f'"{large}"']


def test_of_two_commits_onto_one_parent_one_is_refused_with_412(http: httpx.Client, repo: str) -> None:
    head = http.get(f"/api/models/{repo}").json()["sha"]

    def commit(path: str) -> int:
        return _commit(http, repo, _file(path), parentCommit=head).status_code

    with ThreadPoolExecutor() as pool:
        assert sorted(pool.map(commit, ["one.txt", "two.txt"])) == [200, 412]
        without = pool.map(lambda path: _commit(http, repo, _file(path)).status_code, ["three.txt", "four.txt"])
        assert list(without) == [200, 200]


def test_flags_in_the_query_are_words(http: httpx.Client, repo: str) -> None:
    word = repo.partition("/")[2]
    flags = dict.fromkeys(("full", "cardData", "config"), "true")
    [full] = http.get("/api/models", params={"search": word, **flags}).json()
    [brief] = http.get("/api/models", params={"search": word, **dict.fromkeys(flags, "false")}).json()
    assert ("siblings" in full, "siblings" in brief) == (True, False)
    siblings = http.get(f"/api/models/{repo}", params={"blobs": "true"}).json()["siblings"]
    assert {one["rfilename"]: one["size"] for one in siblings}["large.bin"] == len(LARGE)
