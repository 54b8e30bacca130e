"""Tokens and organisations by command, against the real server in a process of its own."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Command
from tests.clients.server import TOKEN, Server, running

pytestmark = pytest.mark.xdist_group("cli-accounts")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("cli") / "data") as server:
        yield server


@pytest.fixture
def here(command: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, with the server and the administrator's token in its environment."""
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", TOKEN)
    return command


def test_a_token_is_made_listed_used_and_ended(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made = here("token", "create", "ci", "--role", "fine-grained", "--scope", "admin=repo.write,collection.write")
    assert made.code == 0, made.err
    assert made.out.startswith("ah_")
    listed = [json.loads(line) for line in here("token", "list", "--json").out.splitlines()]
    [ci] = [one for one in listed if one["name"] == "ci"]
    assert ci["scoped"] == [{"name": "admin", "type": "user", "permissions": ["collection.write", "repo.write"]}]
    assert "admin: collection.write, repo.write" in here("token", "list").out
    monkeypatch.setenv("ADAPTERHUB_TOKEN", made.out.strip())
    assert "ci (fineGrained)" in here("whoami").out
    refused = here("token", "create", "more", "--role", "write")
    assert (refused.code, "fine-grained token" in refused.err) == (4, True)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", TOKEN)
    assert here("token", "revoke", "ci").code == 2
    assert here("token", "revoke", "ci", "--yes").code == 0
    assert here("token", "revoke", "ci", "--yes").code == 3


@pytest.mark.parametrize("scope", ["admin", "=repo.write", "admin="])
def test_a_scope_that_says_nothing_is_refused_before_it_is_sent(here: Command, scope: str) -> None:
    ended = here("token", "create", "x", "--role", "fine-grained", "--scope", scope)
    assert (ended.code, "THING=PERMISSION" in ended.err) == (2, True)


def test_an_organisation_is_made_and_its_members_chosen(here: Command) -> None:
    assert here("admin", "user", "add", "maria").code == 0
    assert here("org", "create", "team", "--fullname", "The team").code == 0
    assert here("org", "member", "set", "team", "maria", "contributor").code == 0
    members = [json.loads(line) for line in here("org", "member", "list", "team", "--json").out.splitlines()]
    assert [(m["name"], m["role"]) for m in members] == [("admin", "admin"), ("maria", "contributor")]
    assert "The team" in here("org", "list").out
    assert here("org", "member", "set", "team", "maria", "king").code == 4
    assert here("org", "member", "remove", "team", "maria").code == 2
    assert here("org", "member", "remove", "team", "maria", "--yes").code == 0
    assert here("org", "member", "remove", "team", "admin", "--yes").code == 4


def test_an_account_chooses_what_becomes_of_unfit_patches(here: Command) -> None:
    assert "refuse, as the server is set" in here("account", "show", "admin").out
    assert here("account", "set", "admin", "--unfit-patches", "flag").code == 0
    assert json.loads(here("account", "show", "admin", "--json").out)["unfit_patches"] == "flag"
    assert here("account", "set", "admin", "--unfit-patches", "maybe").code == 4
    assert here("account", "set", "admin", "--unfit-patches", "default").code == 0
    assert "refuse, as the server is set" in here("account", "show", "admin").out


def test_a_repository_is_closed_and_opened_again(here: Command) -> None:
    from huggingface_hub import HfApi

    HfApi(endpoint=_endpoint(), token=TOKEN).create_repo("admin/closed")
    assert here("admin", "repo", "disable", "admin/closed").code == 2
    assert here("admin", "repo", "disable", "admin/closed", "--reason", "stolen", "--yes").code == 0
    assert json.loads(here("patch", "show", "admin/closed", "--json").out)["disabled"] is True
    assert here("admin", "repo", "enable", "admin/closed").code == 0
    assert json.loads(here("patch", "show", "admin/closed", "--json").out)["disabled"] is False
    assert here("admin", "repo", "enable", "admin/nothing").code == 3
    assert here("admin", "repo", "enable", "nothing").code == 2


def _endpoint() -> str:
    return os.environ["ADAPTERHUB_ENDPOINT"]
