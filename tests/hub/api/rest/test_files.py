"""Files by plain curl: stored, resumed after a break, read by range, refused where they must be, archived."""

import base64
import hashlib
import io
import json
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from adapterhub.hub.services import repos
from adapterhub.hub.services.parts import FOLDER
from tests.hub.api.rest.conftest import Site

REPO = "maria/notes"
MIB = 1 << 20


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def filed(site: Site) -> Site:
    """A site with an empty repository of maria's."""
    repos.create(site.hub, site.caller("maria"), REPO)
    return site


def curl(site: Site, *arguments: str, name: str | None = "maria") -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers (names in lower case) of the last answer."""
    token = ["-H", f"Authorization: Bearer {site.tokens[name]}"] if name else []
    command = ["curl", "-sS", "--path-as-is", "-D", "/dev/stderr", *token, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    last = done.stderr.decode().strip().split("\r\n\r\n")[-1].splitlines()
    headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in last[1:]}
    return int(last[0].split()[1]), done.stdout, headers


def url(site: Site, path: str, query: str = "") -> str:
    return f"{site.url}/api/patches/{REPO}/files/{path}{query}"


def leftovers(site: Site) -> list[Path]:
    folder = site.hub.settings.data / FOLDER
    return list(folder.iterdir()) if folder.exists() else []


def test_a_file_that_curl_sends_is_answered_with_its_sha256_and_read_back(filed: Site, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB + 17)
    (tmp_path / "w.bin").write_bytes(content)
    status, body, headers = curl(filed, "-T", str(tmp_path / "w.bin"), url(filed, "deep/w.bin"))
    stored = json.loads(body)
    assert status == 201
    assert stored == {
        "path": "deep/w.bin",
        "size": len(content),
        "sha256": sha256(content),
        "commit": headers["x-repo-commit"],
    }
    status, body, headers = curl(filed, url(filed, "deep/w.bin"), name=None)
    assert (status, body) == (200, content)
    assert headers["x-repo-commit"] == stored["commit"]
    assert leftovers(filed) == []


def test_sending_the_same_file_again_makes_no_new_commit(filed: Site, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"same")
    commits = {json.loads(curl(filed, "-T", str(tmp_path / "w"), url(filed, "w"))[1])["commit"] for _ in range(2)}
    assert len(commits) == 1


def test_an_empty_file_and_one_of_unknown_length_are_stored(filed: Site) -> None:
    for path, content, how in (
        ("empty", b"", ["--data-binary", "@-"]),
        ("piped", b"from a pipe", ["-T", "-", "-H", "Transfer-Encoding: chunked"]),
    ):
        command = ["curl", "-sS", "-X", "PUT", *how, "-H", f"Authorization: Bearer {filed.tokens['maria']}"]
        done = subprocess.run([*command, url(filed, path)], input=content, capture_output=True, timeout=60)
        assert json.loads(done.stdout)["sha256"] == sha256(content)
        assert curl(filed, url(filed, path))[1] == content


def test_parts_are_kept_and_curl_goes_on_where_it_stood(filed: Site, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB + 5)
    (tmp_path / "w").write_bytes(content)
    (tmp_path / "first").write_bytes(content[:MIB])
    first = ["-T", str(tmp_path / "first"), "-H", f"Content-Range: bytes 0-{MIB - 1}/{len(content)}"]
    status, body, headers = curl(filed, *first, url(filed, "w"))
    assert (status, headers["upload-offset"]) == (202, str(MIB))
    assert json.loads(body) == {"path": "w", "offset": MIB, "total": len(content)}
    assert curl(filed, url(filed, "w"))[0] == 404

    status, _, headers = curl(filed, "-I", url(filed, "w", "?upload=1"))
    assert (status, headers["upload-offset"], headers["upload-length"]) == (200, str(MIB), str(len(content)))
    status, body, _ = curl(filed, "-C", headers["upload-offset"], "-T", str(tmp_path / "w"), url(filed, "w"))
    assert (status, json.loads(body)["sha256"]) == (201, sha256(content))
    assert curl(filed, "-I", url(filed, "w", "?upload=1"))[0] == 404
    assert leftovers(filed) == []


def test_curls_own_wish_to_resume_sends_the_whole_file_anew(filed: Site, tmp_path: Path) -> None:
    content = os.urandom(MIB)
    (tmp_path / "w").write_bytes(content)
    part = ["-X", "PUT", "--data-binary", "xy", "-H", f"Content-Range: bytes 0-1/{len(content)}"]
    assert curl(filed, *part, url(filed, "w"))[0] == 202
    status, body, _ = curl(filed, "-C", "-", "-T", str(tmp_path / "w"), url(filed, "w"))
    assert (status, json.loads(body)["sha256"]) == (201, sha256(content))


def test_what_arrived_before_the_connection_broke_is_kept(filed: Site, tmp_path: Path) -> None:
    content = os.urandom(8 * MIB)
    (tmp_path / "w").write_bytes(content)
    head = (
        f"PUT /api/patches/{REPO}/files/w HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
        f"Authorization: Bearer {filed.tokens['maria']}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(filed.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + content[: 6 * MIB])
        while arrived(filed) < 4 * MIB:  # the server writes in pieces of so much
            pass
    assert curl(filed, url(filed, "w"))[0] == 404
    status = 409
    while status == 409:  # until the server noticed that the first connection is gone
        offset = arrived(filed)
        status, body, _ = curl(filed, "-C", str(offset), "-T", str(tmp_path / "w"), url(filed, "w"))
    assert 4 * MIB <= offset <= 6 * MIB
    assert (status, json.loads(body)["sha256"]) == (201, sha256(content))


def arrived(site: Site) -> int:
    answer = site.client().head(f"/api/patches/{REPO}/files/w", params={"upload": True})
    return int(answer.headers.get("upload-offset", 0))


def test_a_part_that_leaves_a_gap_is_refused_with_the_right_offset(filed: Site) -> None:
    body = ["-X", "PUT", "--data-binary", "abcd"]
    assert curl(filed, *body, "-H", "Content-Range: bytes 0-3/12", url(filed, "w"))[0] == 202
    status, text, headers = curl(filed, *body, "-H", "Content-Range: bytes 8-11/12", url(filed, "w"))
    assert (status, headers["upload-offset"], json.loads(text)["code"]) == (409, "4", "offset_mismatch")
    status, text, _ = curl(filed, *body, "-H", "Content-Range: bytes 4-7/13", url(filed, "w"))
    assert (status, json.loads(text)["code"]) == (409, "conflict")


@pytest.mark.parametrize("text", ["bytes 3-1/9", "bytes 0-9/9", "bytes */9", "items 0-1/2", "bytes 0-9/100"])
def test_a_content_range_that_contradicts_itself_is_refused(filed: Site, text: str) -> None:
    status, body, _ = curl(filed, "-X", "PUT", "-d", "abcd", "-H", f"Content-Range: {text}", url(filed, "w"))
    assert (status, json.loads(body)["code"]) == (400, "invalid_request")
    assert leftovers(filed) == []


def test_bytes_that_are_not_the_announced_ones_are_not_stored(filed: Site) -> None:
    right, wrong = sha256(b"right"), sha256(b"wrong")
    put = ["-X", "PUT", "--data-binary", "right"]
    status, body, headers = curl(filed, *put, "-H", f"X-Content-Sha256: {wrong}", url(filed, "w"))
    assert (status, headers["x-error-code"]) == (400, "DigestMismatch")
    assert right in json.loads(body)["detail"]
    assert curl(filed, url(filed, "w"))[0] == 404
    assert leftovers(filed) == []
    assert curl(filed, *put, "-H", f"X-Content-Sha256: {right}", url(filed, "w"))[0] == 201
    announced = base64.b64encode(bytes.fromhex(wrong)).decode()
    assert curl(filed, *put, "-H", f"Digest: sha-256={announced}", url(filed, "x"))[0] == 400
    assert curl(filed, *put, "-H", "X-Content-Sha256: abc", url(filed, "x"))[0] == 400


@pytest.mark.parametrize("path", ["../../x", "a/../../x", "a//b", ".git/config", "a%5Cb", "CON", "nul%00"])
def test_a_path_that_leaves_the_repository_is_refused(filed: Site, path: str) -> None:
    status, body, headers = curl(filed, "-X", "PUT", "-d", "x", url(filed, path))
    assert (status, headers["x-error-code"]) == (400, "InvalidPath")
    assert json.loads(body)["status"] == 400
    assert leftovers(filed) == []


def test_only_who_may_write_puts_files(filed: Site) -> None:
    put = ["-X", "PUT", "-d", "x", url(filed, "w")]
    assert curl(filed, *put, name="stranger")[0] == 403
    assert curl(filed, *put, name=None)[0] == 401
    assert curl(filed, "-X", "PUT", "-d", "x", f"{filed.url}/api/patches/maria/none/files/w")[0] == 404
    assert curl(filed, *put[:-1], url(filed, "w", "?branch=none"))[0] == 404


def test_a_private_file_looks_missing_to_strangers(site: Site) -> None:
    repos.create(site.hub, site.caller("maria"), REPO, private=True)
    curl(site, "-X", "PUT", "-d", "x", url(site, "w"))
    for name in ("stranger", None):
        for address in (url(site, "w"), f"{site.url}/api/patches/{REPO}/archive"):
            status, body, _ = curl(site, address, name=name)
            assert (status, json.loads(body)["code"]) == (404, "repo_not_found")


def test_a_file_is_read_by_range_and_told_by_head(filed: Site) -> None:
    curl(filed, "-X", "PUT", "--data-binary", "0123456789", url(filed, "w"))
    status, body, headers = curl(filed, "-r", "2-4", url(filed, "w"))
    assert (status, body, headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    status, _, headers = curl(filed, "-I", url(filed, "w"))
    assert (status, headers["content-length"], headers["accept-ranges"]) == (200, "10", "bytes")
    status, _, headers = curl(filed, "-r", "10-", url(filed, "w"))
    assert (status, headers["content-range"]) == (416, "bytes */10")
    assert curl(filed, url(filed, "w", "?revision=nowhere"))[0] == 404


def test_a_broken_download_is_resumed_by_curl(filed: Site, tmp_path: Path) -> None:
    content = os.urandom(MIB)
    (tmp_path / "up").write_bytes(content)
    (tmp_path / "down").write_bytes(content[:1000])
    curl(filed, "-T", str(tmp_path / "up"), url(filed, "w"))
    assert curl(filed, "-C", "-", "-o", str(tmp_path / "down"), url(filed, "w"))[0] == 206
    assert (tmp_path / "down").read_bytes() == content


def test_an_archive_holds_every_file_of_the_revision(filed: Site, tmp_path: Path) -> None:
    files = {"a.txt": b"a" * 512, "deep/" * 20 + "long.txt": b"long", "größe.bin": os.urandom(70_000), "none": b""}
    for path, content in files.items():
        filed.client().put(f"/api/patches/{REPO}/files/{path}", content=content)
    status, body, headers = curl(filed, f"{filed.url}/api/patches/{REPO}/archive")
    assert status == 200
    assert int(headers["content-length"]) == len(body)
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        members = {member.name.partition("/")[2]: member for member in tar.getmembers()}
        folders = {member.name.partition("/")[0] for member in tar.getmembers()}
        assert folders == {f"notes-{headers['x-repo-commit'][:12]}"}
        for path, content in files.items():
            found = tar.extractfile(members[path])
            assert found is not None
            assert found.read() == content
    assert body == curl(filed, f"{filed.url}/api/patches/{REPO}/archive?revision=main")[1]
    (tmp_path / "a.tar").write_bytes(body)
    subprocess.run(["tar", "-xf", str(tmp_path / "a.tar"), "-C", str(tmp_path)], check=True)
