"""What the real client sends: the unmodified hf_xet wheel, uploading to a server that only listens."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CLIENT = """
import sys
from hf_xet import COMPUTE_SHA256, XetSession

refresh, *files = sys.argv[1:]
with XetSession().new_upload_commit(token_refresh_url=refresh, token_refresh_headers={}) as commit:
    handles = [commit.start_upload_file(file, sha256=COMPUTE_SHA256) for file in files]
for handle in handles:
    info = handle.result().xet_info
    print(info.hash, info.sha256)
"""


@dataclass
class Capture:
    """Bodies as they came. files: (Xet file hash, sha256 in hexadecimal) as the client reports them, by name."""

    xorbs: dict[str, bytes] = field(default_factory=dict)
    shards: list[bytes] = field(default_factory=list)
    files: dict[str, tuple[str, str]] = field(default_factory=dict)


def capture(contents: dict[str, bytes], folder: Path) -> Capture:
    """Upload `contents` in one session of the real client and give everything that it sent. `folder` is scratch."""
    seen = Capture()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(seen))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        url = f"http://127.0.0.1:{server.server_port}/token"
        command = [sys.executable, "-c", _CLIENT, url, *(str(folder / name) for name in contents)]
        environment = {**os.environ, "HF_HOME": str(folder / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        server.shutdown()
        server.server_close()
    for name, line in zip(contents, done.stdout.splitlines(), strict=True):
        xet_hash, sha256 = line.split()
        seen.files[name] = (xet_hash, sha256)
    return seen


def _handler(seen: Capture) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/token":
                cas = f"http://{self.headers['Host']}/cas"
                self._answer({"accessToken": "t", "exp": int(time.time()) + 3600, "casUrl": cas})
            else:
                self._answer(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/cas/v1/xorbs/default/"):
                seen.xorbs[self.path.rsplit("/", 1)[1]] = body
                self._answer({"was_inserted": True})
            elif self.path == "/cas/v1/shards":
                seen.shards.append(body)
                self._answer({"result": 1})
            else:
                self._answer(None)

        def _answer(self, value: dict[str, object] | None) -> None:
            body = json.dumps(value).encode()
            self.send_response(404 if value is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence: a test that fails shows the client's own words."""

    return Handler
