"""What arrives through the server's connections, beside what was sent: whole, in order, and to the right request."""

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from adapterhub.hub.connections import READ_BYTES, Connection
from tests import servers

BODY = os.urandom(3 * READ_BYTES + 17)


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answers with the path, the size and the SHA-256 of the body; under /early before the body has come."""
    size_bytes, found, more = 0, hashlib.sha256(), scope["path"] != "/early"
    while more:
        message = await receive()
        assert isinstance(message["body"], bytes)
        size_bytes += len(message["body"])
        found.update(message["body"])
        more = message["more_body"]
    content = json.dumps([scope["path"], size_bytes, found.hexdigest()]).encode()
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@contextmanager
def serving(loop: str) -> Iterator[int]:
    """The port under which `app` answers, through Connection, on that kind of event loop."""
    [port] = servers.free_ports(1)
    config = uvicorn.Config(app, port=port, http=Connection, loop=loop, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield port
    finally:
        server.should_exit = True
        thread.join()


def answers(port: int, sent: bytes, count: int) -> list[Any]:
    """The first `count` answers to those bytes, which are sent while they are read."""

    async def ask() -> list[Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        found = []
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            found.append(json.loads(await reader.readexactly(int(length.partition(b":")[2]))))
        writer.close()
        return found

    return asyncio.run(asyncio.wait_for(ask(), 30))


def request(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(path: str, pieces: list[bytes]) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def told(path: str, body: bytes) -> list[Any]:
    return [path, len(body), hashlib.sha256(body).hexdigest()]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_bodies_of_every_size_arrive_whole_and_in_order(loop: str) -> None:
    bodies = [b"", b"x", BODY[:65_536], BODY[: READ_BYTES - 1], BODY[: READ_BYTES + 1], BODY, b"last"]
    with serving(loop) as port:
        sent = b"".join(request(f"/{number}", body) for number, body in enumerate(bodies))
        assert answers(port, sent, len(bodies)) == [told(f"/{number}", body) for number, body in enumerate(bodies)]


def test_large_and_tiny_chunks_of_one_body_are_joined_in_order() -> None:
    tiny = [BODY[at : at + 1] for at in range(30_000)]
    pieces = [*tiny, BODY[:100_000], *tiny, BODY, *tiny, BODY[5:200_000]]
    with serving("uvloop") as port:
        assert answers(port, chunked("/c", pieces) + request("/after", b"y"), 2) == [
            told("/c", b"".join(pieces)),
            told("/after", b"y"),
        ]


def test_a_body_that_nobody_reads_does_not_reach_the_next_request() -> None:
    with serving("uvloop") as port:
        assert answers(port, request("/early", BODY) + request("/next", b"y"), 2) == [
            told("/early", b""),
            told("/next", b"y"),
        ]


def test_connections_at_once_do_not_see_each_other() -> None:
    found: dict[int, list[Any]] = {}
    with serving("uvloop") as port:

        def ask(number: int) -> None:
            found[number] = answers(port, request(f"/{number}", BODY[number:]), 1)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [told(f"/{number}", BODY[number:])] for number in range(8)}
