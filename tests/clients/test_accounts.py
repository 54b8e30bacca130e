"""Accounts, tokens, likes, gates and collections, by unmodified clients."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.clients.conftest import Run
from tests.clients.server import Server, run_client

pytestmark = pytest.mark.slow

HF = str(Path(sys.executable).with_name("hf"))
MODULE = "tests.clients.scenarios_accounts"


@pytest.mark.parametrize("name", ["who_am_i", "fine_grained_tokens", "contributors", "overviews"])
def test_accounts_and_their_tokens(run_scenario: Run, name: str) -> None:
    run_scenario(name, module=MODULE)


@pytest.mark.parametrize("name", ["likes", "model_tags", "gates", "automatic_gate", "disabled", "collections"])
def test_what_people_do_to_repositories(run_scenario: Run, repo_id: str, name: str) -> None:
    run_scenario(name, repo_id, module=MODULE)


def test_the_hf_command_keeps_and_switches_tokens(server: Server, tmp_path: Path) -> None:
    with server.http() as http:
        other = http.post("/api/tokens", json={"name": "other", "role": "read"}).json()["token"]
    hf = partial(run_client, server, tmp_path / "hf")
    for token in (server.token, other):
        hf([HF, "auth", "login", "--token", token])
    listed = hf([HF, "auth", "list"]).stdout
    assert "other" in listed
    assert "admin" in hf([HF, "auth", "whoami"]).stdout
    hf([HF, "auth", "switch", "--token-name", "other"])
    assert hf([HF, "auth", "token"]).stdout.strip().splitlines()[0] == other
    hf([HF, "auth", "logout", "--token-name", "other"])
    assert "other" not in hf([HF, "auth", "list"]).stdout


def test_the_hf_command_gates_and_collects(server: Server, repo_id: str, tmp_path: Path) -> None:
    hf = partial(run_client, server, tmp_path / "hf", HF_TOKEN=server.token)
    hf([HF, "repos", "create", repo_id])
    hf([HF, "repos", "settings", repo_id, "--gated", "manual"])
    slug = json.loads(hf([HF, "collections", "create", f"All of {repo_id}", "--format", "json"]).stdout)["slug"]
    hf([HF, "collections", "add-item", slug, repo_id, "model", "--note", "the first"])
    [item] = json.loads(hf([HF, "collections", "info", slug]).stdout)["items"]
    assert (item["item_id"], item["note"]) == (repo_id, "the first")
    hf([HF, "collections", "delete", slug])
    with server.http() as http:
        assert http.get(f"/api/models/{repo_id}").json()["gated"] == "manual"
        assert http.get(f"/api/collections/{slug}").status_code == 404
