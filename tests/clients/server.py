"""The real server as a process of its own, and what can be seen of it from outside."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
TOKEN = "ah_the-token-of-the-first-administrator-in-tests"
START = "from adapterhub.hub.settings import Settings; from adapterhub.hub.start import serve; serve(Settings())"


@dataclass
class Server:
    """A running server. lines: what it has written to stderr so far."""

    url: str
    data: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    token: str = TOKEN

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        """A plain connection, to break off in the middle."""
        return socket.create_connection(self.address, timeout=30)

    def http(self) -> httpx.Client:
        """A client that sends the administrator's token."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=60)

    def blobs(self) -> set[str]:
        """The digests stored."""
        return {"sha256:" + path.name for path in (self.data / "blobs" / "objects").rglob("*") if path.is_file()}

    def unfinished(self) -> list[Path]:
        """Bytes on their way: spooled bodies and blobs not yet committed."""
        folders = (self.data / "blobs" / "tmp", self.data / "spool")
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]

    def reset_peak_memory(self) -> int:
        """Resident bytes now; the peak is counted anew from here."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak_memory(self) -> int:
        """The most resident bytes since `reset_peak_memory`."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status after that signal."""
        self.process.send_signal(how)
        return self.process.wait(timeout=60)


@contextmanager
def running(data: Path, **settings: str) -> Iterator[Server]:
    """A server on `data` and a free port, ready when given. settings: names of ADAPTERHUB_ variables in lower case.

    Without the engine and job processes unless settings ask for them.
    """
    given = {"engine": "none", "workers": "0", "admin_token": TOKEN, "log_format": "json", "port": "0", **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTERHUB_")}
    environment |= {f"ADAPTERHUB_{name.upper()}": value for name, value in given.items() if value}
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        env={**environment, "ADAPTERHUB_DATA": str(data)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    server = Server("", data, process)
    try:
        for line in process.stderr:
            server.lines.append(line)
            if line.startswith("adapterhub is at "):
                server.url = line.split()[3]
                break
        assert server.url, "the server did not start:\n" + "".join(server.lines)
        threading.Thread(target=lambda: server.lines.extend(process.stderr or ()), daemon=True).start()
        # the socket listens already: this waits until the application has started
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)
        process.stderr.close()


def client_environment(server: Server, home: Path, **environment: str) -> dict[str, str]:
    """The variables of a client: nothing is set but HF_ENDPOINT, and HF_HOME to keep tests apart."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ADAPTERHUB_"))}
    return {**inherited, "HF_ENDPOINT": server.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}


def run_client(
    server: Server, home: Path, command: Sequence[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """A client program as a user would run it, in `client_environment`."""
    done = subprocess.run(
        command,
        env=client_environment(server, home, **environment),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}\n" + "".join(server.lines[-20:])
    return done
