"""Discussions, pull requests and squashed histories, by unmodified clients."""

import secrets

import pytest

from tests.clients.conftest import Run
from tests.clients.server import Server

MODULE = "tests.clients.scenarios_discussions"


def test_a_discussion_from_opening_to_closing(run_scenario: Run, repo_id: str) -> None:
    run_scenario("discussion", repo_id, module=MODULE)


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_a_stranger_proposes_and_the_owner_merges(
    server: Server, run_scenario: Run, repo_id: str, *, xet: bool
) -> None:
    with server.http() as http:
        token = http.post("/api/admin/users", json={"name": f"u{secrets.token_hex(5)}"}).json()["token"]
    run_scenario("pull_request", repo_id, token, module=MODULE, xet=xet)


def test_drafts_conflicts_and_earlier_parents(run_scenario: Run, repo_id: str) -> None:
    run_scenario("draft_and_conflict", repo_id, module=MODULE)


def test_a_history_is_squashed(run_scenario: Run, repo_id: str) -> None:
    run_scenario("squash", repo_id, module=MODULE)
