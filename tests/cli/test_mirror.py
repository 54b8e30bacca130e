"""Mirrors by command, against the real server in a process of its own."""

import io
import json
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Command
from tests.clients.server import TOKEN, Server, running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cli-mirror")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that mirrors an address at which nothing answers."""
    with running(tmp_path_factory.mktemp("cli") / "data", mirror_url="http://127.0.0.1:9") as server:
        yield server


@pytest.fixture
def here(command: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, with the server and the administrator's token in its environment."""
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", TOKEN)
    return command


def test_a_token_comes_from_standard_input_and_is_never_shown(
    here: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "hf_canary0123456789"
    assert here("org", "create", "team").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    refused = here("admin", "mirror", "token", "team")
    assert (refused.code, "standard input" in refused.err) == (2, True)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{canary}\n"))
    kept = here("admin", "mirror", "token", "team")
    assert kept.code == 0, kept.err
    listed = here("admin", "mirror", "tokens", "--json")
    assert json.loads(listed.out)["organisation"] == "team"
    table = here("admin", "mirror", "tokens")
    assert "http://127.0.0.1:9" in table.out
    assert here("admin", "mirror", "token", "team", "--remove").code == 2
    assert here("admin", "mirror", "token", "team", "--remove", "--yes").code == 0
    assert here("admin", "mirror", "token", "team", "--remove", "--yes").code == 3
    assert all(canary not in text for one in (kept, listed, table) for text in (one.out, one.err))
    assert all(canary not in line for line in server.lines)


def test_a_name_that_is_not_here_can_be_asked_for_again(here: Command) -> None:
    assert here("admin", "mirror", "refresh", "far/nothing").code == 0
