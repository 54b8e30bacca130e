"""The server as a process: how it starts, what it loads, how it ends."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.clients.server import START, Server, running

pytestmark = pytest.mark.slow


def test_the_web_process_never_loads_torch(server: Server) -> None:
    with server.http() as http:
        for path in ("/health", "/docs", "/openapi.json", "/api/models", "/api/whoami-v2"):
            assert http.get(path).status_code == 200
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "pydantic_core" in maps
    assert "libtorch" not in maps
    assert "/torch/" not in maps


def test_a_first_start_without_a_terminal_leaves_the_token_in_a_private_file(tmp_path: Path) -> None:
    with running(tmp_path / "data", admin_token="", admin_name="boss") as server:
        path = tmp_path / "data" / "first-admin-token"
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text().strip()
        reply = httpx.get(f"{server.url}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"})
        assert reply.json()["name"] == "boss"
        assert token not in "".join(server.lines)
        assert (tmp_path / "data" / "secret").stat().st_mode & 0o777 == 0o600
        path.unlink()
    with running(tmp_path / "data", admin_token=""):
        assert not path.exists()


def test_a_public_address_without_a_secret_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, "ADAPTERHUB_DATA": str(tmp_path / "data"), "ADAPTERHUB_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ADAPTERHUB_SECRET" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def test_a_taken_address_is_told_in_one_line(server: Server, tmp_path: Path) -> None:
    settings = {"ADAPTERHUB_DATA": str(tmp_path / "data"), "ADAPTERHUB_PORT": str(server.address[1])}
    done = subprocess.run([sys.executable, "-c", START], env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "choose another ADAPTERHUB_PORT" in done.stderr.splitlines()[-1]


def test_sigterm_lets_a_request_in_flight_end(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server:
        body = b'{"content": "---\\nlicense: mit\\n---\\n", "repoType": "model"}'
        head = b"POST /api/validate-yaml HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with server.connect() as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
            connection.sendall(body[:10])
            assert httpx.get(f"{server.url}/health").status_code == 200
            stopped = threading.Thread(target=server.stop)
            stopped.start()
            connection.sendall(body[10:])
            assert re.match(rb"HTTP/1.1 200 ", connection.recv(4096))
        stopped.join(timeout=60)
        assert server.process.returncode == 0
    assert '"event": "stopped"' in "".join(server.lines)
