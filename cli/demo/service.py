"""The demo's own server: a process of its own on a free port, with the demo's data, as a person would start it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapterhub.cli.demo.errors import DemoFailed
from adapterhub.cli.demo.works import NAMESPACE

START_S = 90
STOP_S = 30


@dataclass(frozen=True)
class Service:
    """A server that is ready. url: where; token: the administrator's; data: its folder; log: what it writes."""

    url: str
    token: str
    data: Path
    log: Path
    process: subprocess.Popen[bytes]

    def environment(self) -> dict[str, str]:
        """The environment of a client that talks to this server and to no other."""
        hub = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(self.data.parent / "hf")}
        own = {"ADAPTERHUB_ENDPOINT": self.url, "ADAPTERHUB_TOKEN": self.token}
        return {**_neutral(os.environ), **hub, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def stop(self) -> None:
        """End it as SIGTERM does: requests in flight finish first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def started(folder: Path, *, keep: bool) -> Iterator[Service]:
    """A server on folder/server, ready when given and stopped on leaving, unless `keep` and all went well.

    The token is in folder/token, which only its owner may read. Raises DemoFailed, with the end of the server's log,
    when it does not answer in 90 s.
    """
    service = start(folder)
    try:
        _await_ready(service)
        yield service
    except BaseException:
        service.stop()
        raise
    if not keep:
        service.stop()


def start(folder: Path) -> Service:
    """A server process on folder/server and a free port; it may not answer yet."""
    data, log, token = folder / "server", folder / "server.log", _token(folder / "token")
    port = _free_port()
    # one thread: the workshop measures meanwhile, and threads that wait for each other's core are slower than one
    settings = {"DATA": data, "PORT": port, "ADMIN_NAME": NAMESPACE, "ADMIN_TOKEN": token, "THREADS": 1}
    environment = _neutral(os.environ) | {f"ADAPTERHUB_{name}": str(value) for name, value in settings.items()}
    with log.open("ab") as output:
        # a session of its own: Ctrl-C at the terminal is ours to answer, and --keep lets it outlive us
        process = subprocess.Popen(
            [sys.executable, "-m", "adapterhub.cli", "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Service(f"http://127.0.0.1:{port}", token, data, log, process)


def _await_ready(service: Service) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and service.process.poll() is None:
        try:
            if httpx.get(f"{service.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    tail = service.log.read_text(errors="replace").splitlines()[-5:]
    raise DemoFailed("the demo's server did not start; the end of its log:\n" + "\n".join(tail))


def _neutral(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would point clients or the server at another hub."""
    return {name: value for name, value in environment.items() if not name.startswith(("ADAPTERHUB_", "HF_"))}


def _token(path: Path) -> str:
    """The token kept in the file, made at the first run."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text("ah_" + secrets.token_urlsafe(32))
    return path.read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
