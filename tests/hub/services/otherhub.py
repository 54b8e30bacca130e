"""Another hub on the loopback, as good or bad as a test wants it: a real HTTP server of the dialect's few routes."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from adapterhub.hub.services.git_objects import blob_oid, pointer_text

COMMIT = "c0ffee" + "0" * 34


@dataclass
class OtherHub:
    """files: what it names. sent: what it sends where that differs; broken: bytes after which it hangs up, once each.

    redirects: where the bytes of a file are, at `elsewhere` perhaps; refused: the status and code of every answer;
    hold: kept until it is set.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    sent: dict[str, bytes] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    refused: tuple[int, str] | None = None
    commit: str = COMMIT
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, range) of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    hold: threading.Event | None = None
    wants: str = ""
    """The token without which there is nothing here."""
    elsewhere: "OtherHub | None" = None
    unknown: set[str] = field(default_factory=set)
    """Revisions that it says it has not."""

    def downloads(self, path: str) -> int:
        """How often the whole file was begun, and not only its first byte asked for."""
        begun = (part for _, url, part in self.asked if url.endswith("/" + path) and part != "bytes=0-0")
        return sum(1 for part in begun if part[:8] in ("", "bytes=0-"))

    def info(self) -> bytes:
        """The revision as the dialect describes it."""
        siblings = []
        for path, content in self.files.items():
            shape: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob_oid(content)}
            if path in self.large:
                sha256 = hashlib.sha256(content).hexdigest()
                pointer = pointer_text(f"sha256:{sha256}", len(content))
                shape |= {"blobId": blob_oid(pointer), "lfs": {"sha256": sha256, "size": len(content)}}
            siblings.append(shape)
        when = "2026-01-02T03:04:05.000Z"
        return json.dumps({"id": "far/model", "sha": self.commit, "lastModified": when, "siblings": siblings}).encode()


@contextmanager
def serving(other: OtherHub) -> Iterator[OtherHub]:
    """`other`, reachable at its url."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            other.asked.append((self.command, urlsplit(self.path).path, self.headers.get("Range") or ""))
            other.headers.append(dict(self.headers))
            _answer(other, self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    other.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield other
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(other: OtherHub, request: BaseHTTPRequestHandler) -> None:
    path = unquote(urlsplit(request.path).path)
    name = "/".join(path.split("/")[5:]) if "/resolve/" in path else path[1:]
    if other.refused is not None:
        status, code = other.refused
        _send(request, status, b"{}", {"X-Error-Code": code})
    elif other.wants and request.headers.get("Authorization") != f"Bearer {other.wants}":
        _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
    elif path.rpartition("/")[2] in other.unknown:
        _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
    elif path.startswith("/api/models/far/model/revision/"):
        _send(request, 200, other.info())
    elif path == "/api/models/far/model/refs":
        _send(request, 200, b'{"tags": [{"name": "v1"}], "branches": []}')
    elif name in other.redirects:
        _send(request, 302, b"", {"Location": other.redirects[name]})
    elif name in other.files:
        if other.hold is not None:
            assert other.hold.wait(30)
        _send_file(other, request, name)
    else:
        _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})


def _send_file(other: OtherHub, request: BaseHTTPRequestHandler, name: str) -> None:
    content = other.sent.get(name, other.files[name])
    wanted = request.headers.get("Range")
    if not wanted:
        _send(request, 200, content)
        return
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) + 1, len(content))
    if start >= len(content):
        _send(request, 416, b"")
        return
    told = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    _send(request, 206, content[start:end], told, broken=other.broken.pop(name, None))


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    broken: int | None = None,
) -> None:
    request.send_response(status)
    for header, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        request.send_header(header, value)
    request.end_headers()
    request.wfile.write(body if broken is None else body[:broken])
