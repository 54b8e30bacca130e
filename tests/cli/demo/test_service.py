"""The demo's server process, without a server: what its clients are told, and what is said when it does not start."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.cli import demo
from adapterhub.cli.demo import service
from adapterhub.cli.demo.errors import DemoFailed
from adapterhub.cli.demo.service import Service


@pytest.fixture
def broken_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose server cannot start: where its data should be lies a file."""
    monkeypatch.setenv("HF_ENDPOINT", "https://elsewhere.example")
    tmp_path.joinpath("server").write_text("in the way")
    return tmp_path


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(broken_settings: Path) -> None:
    with pytest.raises(DemoFailed, match="did not start"), service.started(broken_settings, keep=True):
        pytest.fail("it started")


def test_clients_are_pointed_at_the_demo_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://elsewhere.example")
    monkeypatch.setenv("ADAPTERHUB_STORAGE_URL", "s3://somewhere")
    with subprocess.Popen(["true"]) as ended:
        told = Service("http://127.0.0.1:1", "ah_x", tmp_path / "server", tmp_path / "log", ended).environment()
    assert told["HF_ENDPOINT"] == told["ADAPTERHUB_ENDPOINT"] == "http://127.0.0.1:1"
    assert told["HF_TOKEN"] == "ah_x"
    assert "ADAPTERHUB_STORAGE_URL" not in told


def test_the_token_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    make: Callable[[Path], str] = service._token
    first = make(tmp_path / "token")
    assert first.startswith("ah_")
    assert make(tmp_path / "token") == first
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_missing_package_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "PACKAGES", ("sys", "no_such_package"))
    with pytest.raises(DemoFailed, match=r"no_such_package; install them with: pip install 'adapterhub\[demo\]'"):
        demo.run(keep=False, data=tmp_path / "demo", fast=True)
    assert not list(tmp_path.iterdir())
