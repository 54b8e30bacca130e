"""One server for the tests of a process, and unmodified clients that know nothing but its address."""

import ast
import functools
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.clients.needs import LACKS
from tests.clients.server import ROOT, Server, run_client, running

WATCH = Path(__file__).parent / "watch"
OLDER = ("1.33", "0.36")
"""Versions of huggingface_hub that tests marked `every_client` run with beside the newest."""
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of scenarios once for each version of huggingface_hub, marked `every_client`.

    Those are the tests with that mark, and those of a file whose MODULE of scenarios imports nothing but the client.
    """
    if "python" not in metafunc.fixturenames:
        return
    marked = metafunc.definition.get_closest_marker("every_client") is not None
    given = any("python" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if marked or (not given and imports_the_client_alone(getattr(metafunc.module, "MODULE", ""))):
        every = pytest.mark.every_client
        older = [pytest.param(version, marks=[every, pytest.mark.slow]) for version in OLDER]
        metafunc.parametrize("python", [pytest.param("newest", marks=every), *older], indirect=True)


@functools.cache
def imports_the_client_alone(module: str) -> bool:
    """Whether that file of scenarios can run where huggingface_hub is installed and nothing else."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    nodes = list(ast.walk(ast.parse(path.read_text()))) if module else []
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name for name in imported if name.partition(".")[0] not in {*sys.stdlib_module_names, "huggingface_hub"}}
    return bool(imported) and others <= {"tests.clients.areas", "tests.clients.needs"}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have a test that is marked `every_client` written down to AHTEST_RECORD, for docs/compatibility.md."""
    marked = item.get_closest_marker("every_client") is not None
    os.environ["AHTEST_METHODS"] = os.environ.get("AHTEST_RECORD", "") if marked else ""


def scenario_runner(server: Server, home: Path, default: Path = Path(sys.executable)) -> Run:
    """Runs scenarios against that server; they share the client's cache in `home`, and may look up no other host.

    A scenario that needs a method the client lacks says so (`needs.py`): its test is skipped with that reason.
    """
    hosts = home.with_name(f"{home.name}-hosts")

    def run(
        name: str,
        *arguments: str,
        xet: bool = True,
        module: str = "tests.clients.scenarios",
        python: Path = default,
        **settings: str,
    ) -> "subprocess.CompletedProcess[str]":
        command = [str(python), "-m", module, name, *arguments]
        ours = [] if python.parents[1].name in OLDER else [os.environ.get("PYTHONPATH", "")]
        environment = {"HF_TOKEN": server.token, **settings} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
        environment |= {
            "AHTEST_HOSTS": str(hosts),
            "PYTHONPATH": os.pathsep.join([str(WATCH), *ours]),
        }
        done = run_client(server, home, command, **environment)
        assert not hosts.exists(), f"{name} looked up {hosts.read_text().split()}"
        if done.stdout.startswith(LACKS):
            pytest.skip(done.stdout.strip())
        return done

    return run


@pytest.fixture
def python(request: pytest.FixtureRequest, environment_of: Callable[[str], Path]) -> Path:
    """The interpreter of the client: ours, and for tests marked `every_client` those of the older versions too."""
    version = getattr(request, "param", "newest")
    return Path(sys.executable) if version == "newest" else environment_of(version)


@pytest.fixture
def run_scenario(server: Server, tmp_path: Path, python: Path) -> Run:
    """Runs one function of `module` in a process of its own, logged in by HF_TOKEN, that may look up no other host.

    xet=False turns Xet off; python: the interpreter of another environment; settings: variables of a client's own.
    """
    return scenario_runner(server, tmp_path / "hf", python)


@pytest.fixture
def environment_of() -> Callable[[str], Path]:
    """Gives the interpreter of a library that lives apart from ours; skips, or fails, where that was not made."""

    def interpreter(name: str) -> Path:
        python = ROOT / ".venv-clients" / name / "bin" / "python"
        if not python.exists():
            target = "clients" if name in OLDER else f"client-{name}"
            servers.missing(f"no environment of {name}: run `make {target}`")
        return python

    return interpreter
