"""One server for the tests of a process, and unmodified clients that know nothing but its address."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.clients.server import ROOT, Server, run_client, running

WATCH = Path(__file__).parent / "watch"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server that tests share: each makes repositories of its own."""
    with running(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture
def repo_id() -> str:
    """A name nobody has taken."""
    return f"admin/r{secrets.token_hex(5)}"


def scenario_runner(server: Server, home: Path) -> Run:
    """Runs scenarios against that server; they share the client's cache in `home`, and may look up no other host."""
    hosts = home.with_name(f"{home.name}-hosts")

    def run(
        name: str,
        *arguments: str,
        xet: bool = True,
        module: str = "tests.clients.scenarios",
        python: Path = Path(sys.executable),
        **settings: str,
    ) -> "subprocess.CompletedProcess[str]":
        command = [str(python), "-m", module, name, *arguments]
        environment = {"HF_TOKEN": server.token, **settings} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
        environment |= {
            "AHTEST_HOSTS": str(hosts),
            "PYTHONPATH": f"{WATCH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        done = run_client(server, home, command, **environment)
        assert not hosts.exists(), f"{name} looked up {hosts.read_text().split()}"
        return done

    return run


@pytest.fixture
def run_scenario(server: Server, tmp_path: Path) -> Run:
    """Runs one function of `module` in a process of its own, logged in by HF_TOKEN, that may look up no other host.

    xet=False turns Xet off; python: the interpreter of another environment; settings: variables of a client's own.
    """
    return scenario_runner(server, tmp_path / "hf")


@pytest.fixture
def environment_of() -> Callable[[str], Path]:
    """Gives the interpreter of a library that lives apart from ours; skips, or fails, where that was not made."""

    def interpreter(name: str) -> Path:
        python = ROOT / ".venv-clients" / name / "bin" / "python"
        if not python.exists():
            servers.missing(f"no environment of {name}: run `make client-{name}`")
        return python

    return interpreter
