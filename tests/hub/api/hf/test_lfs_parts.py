"""Large files in numbered parts: whole and checked, or refused in words that name the part."""

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.testclient import TestClient

from adapterhub.hub.app import create_app
from adapterhub.hub.context import Hub
from adapterhub.hub.services import accounts, lfs_parts
from adapterhub.hub.settings import Settings
from tests.hub.api.conftest import TOKEN

PART = 1 << 16
CONTENT = random.Random(0).randbytes(180_000)  # three parts, the last one shorter
PIECES = [CONTENT[at : at + PART] for at in range(0, len(CONTENT), PART)]
URL = "http://127.0.0.1:8000"


@dataclass
class Service:
    """A service, a client that may write to ann/r, and one that sends no token, as clients do with the bytes."""

    hub: Hub
    writer: TestClient
    bare: TestClient

    def batch(self, content: bytes = CONTENT, transfers: tuple[str, ...] = ("basic", "multipart")) -> Any:
        oid = hashlib.sha256(content).hexdigest()
        wanted = {"operation": "upload", "transfers": transfers, "objects": [{"oid": oid, "size": len(content)}]}
        reply = self.writer.post("/ann/r.git/info/lfs/objects/batch", json=wanted)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def begin(self, content: bytes = CONTENT) -> tuple[str, list[str]]:
        """The link that completes, and that of each part."""
        action = self.batch(content)["objects"][0]["actions"]["upload"]
        return action["href"], [url for name, url in sorted(action["header"].items()) if name.isdigit()]

    def put(self, url: str, piece: bytes) -> str:
        reply = self.bare.put(url, content=piece)
        assert reply.status_code == 200, reply.text
        return reply.headers["ETag"]

    def complete(self, href: str, etags: list[str], numbers: list[int] | None = None) -> Response:
        numbered = zip(numbers or range(1, len(etags) + 1), etags, strict=True)
        parts = [{"partNumber": number, "etag": etag} for number, etag in numbered]
        return self.bare.post(href, json={"oid": hashlib.sha256(CONTENT).hexdigest(), "parts": parts})

    def is_stored(self, content: bytes = CONTENT) -> bool:
        wanted = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
        return self.writer.post("/ann/r.git/info/lfs/objects/verify", json=wanted).status_code == 200

    def on_their_way(self) -> list[Path]:
        return list((self.hub.settings.data / lfs_parts.FOLDER).glob("*"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that takes files from 128 KiB on in parts of 64 KiB."""
    app = create_app(
        Settings(
            data=tmp_path / "data",
            engine="none",
            workers=0,
            admin_token=SecretStr(TOKEN),
            multipart_min_bytes=2 * PART,
            multipart_part_bytes=PART,
        )
    )
    hub: Hub = app.state.hub
    hub.db.transact(lambda session: accounts.first_admin(session, "ann", TOKEN))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url=URL, headers=headers, raise_server_exceptions=False) as writer:
        writer.post("/api/repos/create", json={"name": "r", "organization": "ann"}).raise_for_status()
        yield Service(hub, writer, TestClient(app, base_url=URL, raise_server_exceptions=False))


def refused(reply: Response) -> tuple[int, str]:
    return reply.status_code, reply.headers["X-Error-Code"]


def test_only_a_large_file_of_a_client_that_offers_it_goes_in_parts(service: Service) -> None:
    answer = service.batch()
    header = answer["objects"][0]["actions"]["upload"]["header"]
    assert answer["transfer"] == "multipart"
    assert set(header) == {"chunk_size", "00001", "00002", "00003"}
    assert int(header["chunk_size"]) == PART
    for small in (
        service.batch(b"x" * (2 * PART - 1)),
        service.batch(transfers=("basic",)),
        service.batch(transfers=()),
    ):
        assert small["transfer"] == "basic"
        assert "header" not in small["objects"][0]["actions"]["upload"]


def test_parts_become_the_file_and_completing_again_changes_nothing(service: Service) -> None:
    href, urls = service.begin()
    etags = [service.put(url, piece) for url, piece in zip(urls, PIECES, strict=True)]
    assert not service.is_stored()
    assert service.complete(href, etags).status_code == 200
    assert service.is_stored()
    assert service.on_their_way() == []
    assert service.complete(href, etags).status_code == 200
    assert "actions" not in service.batch()["objects"][0]


def test_two_that_complete_at_once_both_succeed(service: Service) -> None:
    href, urls = service.begin()
    etags = [service.put(url, piece) for url, piece in zip(urls, PIECES, strict=True)]
    upload = lfs_parts.opened(
        service.hub, href.partition("signature=")[2], "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    )
    start, failures = threading.Barrier(4), []

    def complete() -> None:
        start.wait()
        try:
            lfs_parts.complete(service.hub, upload, list(enumerate(etags, start=1)))
        except Exception as error:  # noqa: BLE001  shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert service.is_stored()


def test_parts_that_are_missing_twice_or_in_another_order_are_refused(service: Service) -> None:
    href, urls = service.begin()
    first, second = (service.put(url, piece) for url, piece in zip(urls[:2], PIECES[:2], strict=True))
    for etags, numbers in (
        ([first, second], [1, 2]),
        ([first, second, second], [1, 2, 2]),
        ([second, first, first], [2, 1, 3]),
        ([first, second, first], [1, 2, 3]),
        ([], []),
        ([first, second, first, second], [1, 2, 3, 4]),
    ):
        assert refused(service.complete(href, etags, numbers)) == (400, "InvalidRequest")
    third = service.put(urls[2], PIECES[2])
    assert refused(service.complete(href, [second, first, third])) == (400, "InvalidRequest")
    assert service.complete(href, [first, second, third]).status_code == 200


def test_a_part_of_another_upload_is_refused(service: Service) -> None:
    href, urls = service.begin()
    etags = [service.put(url, piece) for url, piece in zip(urls, PIECES, strict=True)]
    other = os.urandom(len(CONTENT))
    other_href, other_urls = service.begin(other)
    foreign = service.put(other_urls[0], other[:PART])
    assert refused(service.complete(href, [foreign, *etags[1:]])) == (400, "InvalidRequest")
    assert refused(service.complete(other_href, etags)) == (400, "InvalidRequest")
    swapped = other_urls[0].replace(hashlib.sha256(other).hexdigest(), hashlib.sha256(CONTENT).hexdigest())
    assert refused(service.bare.put(swapped, content=PIECES[0])) == (401, "InvalidToken")
    assert refused(service.bare.put(urls[0] + "x", content=PIECES[0])) == (401, "InvalidToken")
    assert service.complete(href, etags).status_code == 200


def test_a_part_of_another_length_or_number_is_refused(service: Service) -> None:
    _, urls = service.begin()
    assert refused(service.bare.put(urls[0], content=PIECES[0] + b"x")) == (413, "TooLarge")
    assert refused(service.bare.put(urls[0], content=PIECES[0][1:])) == (400, "InvalidRequest")
    for number in ("0", "4", "-1"):
        url = urls[0].replace("/parts/1?", f"/parts/{number}?")
        assert refused(service.bare.put(url, content=PIECES[0])) == (400, "InvalidRequest")
    assert not service.is_stored()


def test_bytes_other_than_announced_are_refused_and_gone(service: Service) -> None:
    href, urls = service.begin()
    wrong = [PIECES[0], b"\0" * PART, PIECES[2]]
    etags = [service.put(url, piece) for url, piece in zip(urls, wrong, strict=True)]
    before = [stat.digest for stat in service.hub.store.list()]
    assert refused(service.complete(href, etags)) == (400, "DigestMismatch")
    assert [stat.digest for stat in service.hub.store.list()] == before
    assert service.on_their_way() == []


def test_an_abandoned_upload_is_swept_after_a_day(service: Service) -> None:
    _, urls = service.begin()
    service.put(urls[0], PIECES[0])
    [folder] = service.on_their_way()
    lfs_parts.sweep(service.hub.settings.data)
    assert service.on_their_way() == [folder]
    yesterday = time.time() - lfs_parts.ABANDONED_S - 60
    for path in (*folder.iterdir(), folder):
        os.utime(path, (yesterday, yesterday))
    other = os.urandom(len(CONTENT))
    service.put(service.begin(other)[1][0], other[:PART])
    assert folder not in service.on_their_way()


_STEPS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=7)


@given(_STEPS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_sent_in_any_order_and_again_count_as_they_came_last(
    service: Service, steps: list[tuple[int, bool]]
) -> None:
    content = os.urandom(len(CONTENT))
    pieces = [content[at : at + PART] for at in range(0, len(content), PART)]
    href, urls = service.begin(content)
    etags, is_right = ["none"] * 3, [False] * 3
    for index, sends_right in steps:
        piece = pieces[index] if sends_right else bytes(len(pieces[index]))
        etags[index], is_right[index] = service.put(urls[index], piece), sends_right
    reply = service.complete(href, etags)
    assert (reply.status_code == 200) == all(is_right)
    assert service.is_stored(content) == all(is_right)
