import hashlib

import pytest
from starlette.testclient import TestClient

from tests.hub.api.hf.test_bad_input import commit, file, upload

SMALL = b"0123456789"
LARGE = bytes(range(256)) * 8


@pytest.fixture
def files(admin_client: TestClient) -> str:
    """The URL of a repository's files: small.txt is regular, large.bin is large."""
    admin_client.post("/api/repos/create", json={"name": "d", "organization": "ann"}).raise_for_status()
    upload(admin_client, "ann/d", LARGE).raise_for_status()
    oid = hashlib.sha256(LARGE).hexdigest()
    large = {"key": "lfsFile", "value": {"path": "large.bin", "oid": oid, "size": len(LARGE)}}
    commit(admin_client, "ann/d", file("small.txt", SMALL), large).raise_for_status()
    return "/ann/d/resolve/main"


def test_head_tells_what_a_file_is(admin_client: TestClient, files: str) -> None:
    small = admin_client.head(f"{files}/small.txt").headers
    assert small["ETag"] == '"ad471007bd7f5983d273b9584e5629230150fd54"'  # git hash-object
    assert small["Content-Length"] == "10"
    assert len(small["X-Repo-Commit"]) == 40
    assert "X-Linked-ETag" not in small
    large = admin_client.head(f"{files}/large.bin").headers
    assert large["X-Linked-ETag"] == large["ETag"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
    assert large["X-Linked-Size"] == str(len(LARGE))
    assert "X-Xet-Hash" not in large


def test_a_browser_never_runs_a_stored_file(admin_client: TestClient, files: str) -> None:
    headers = admin_client.get(f"{files}/small.txt").headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment; ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in headers["Content-Security-Policy"]


def test_one_range_is_served(admin_client: TestClient, files: str) -> None:
    reply = admin_client.get(f"{files}/large.bin", headers={"Range": "bytes=10-19"})
    assert (reply.status_code, reply.content) == (206, LARGE[10:20])
    assert reply.headers["Content-Range"] == f"bytes 10-19/{len(LARGE)}"


def test_many_ranges_get_the_whole_file(admin_client: TestClient, files: str) -> None:
    reply = admin_client.get(f"{files}/small.txt", headers={"Range": "bytes=" + ",".join(["0-1"] * 1000)})
    assert (reply.status_code, reply.content) == (200, SMALL)


def test_a_range_past_the_end_is_416_with_the_size(admin_client: TestClient, files: str) -> None:
    reply = admin_client.get(f"{files}/small.txt", headers={"Range": "bytes=10-"})
    assert (reply.status_code, reply.headers["Content-Range"]) == (416, "bytes */10")


def test_a_range_of_changed_content_gets_the_whole_file(admin_client: TestClient, files: str) -> None:
    reply = admin_client.get(f"{files}/small.txt", headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (reply.status_code, reply.content) == (200, SMALL)


def test_known_content_is_not_sent_again(admin_client: TestClient, files: str) -> None:
    etag = admin_client.head(f"{files}/small.txt").headers["ETag"]
    reply = admin_client.get(f"{files}/small.txt", headers={"If-None-Match": etag})
    assert (reply.status_code, reply.content) == (304, b"")


def test_a_missing_file_names_the_commit(admin_client: TestClient, files: str) -> None:
    reply = admin_client.head(f"{files}/nothing.txt")
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert len(reply.headers["X-Repo-Commit"]) == 40


def test_a_loader_counts_as_one_download(admin_client: TestClient, files: str) -> None:
    commit(admin_client, "ann/d", file("config.json", b"{}")).raise_for_status()
    for path in ("config.json", "small.txt", "large.bin"):
        admin_client.get(f"{files}/{path}", headers={"X-HF-Download-Counter": "1"})
    assert admin_client.get("/api/models/ann/d").json()["downloads"] == 1


def test_lists_come_in_pages_that_keep_their_filters(admin_client: TestClient, files: str) -> None:
    commit(admin_client, "ann/d", *(file(f"f/{n}.txt", b"x") for n in range(5))).raise_for_status()
    url, found = "/api/models/ann/d/tree/main?recursive=true&limit=3", []
    while url:
        reply = admin_client.get(url)
        found += [entry["path"] for entry in reply.json()]
        url = reply.links["next"]["url"] if reply.links else ""
    assert found == sorted([".gitattributes", "f", "large.bin", "small.txt", *(f"f/{n}.txt" for n in range(5))])
