"""Webhooks from the client's call to a receiver that fails twice, through the real server and its job process."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.clients.conftest import Run
from tests.clients.server import Server, run_client, running
from tests.hub.services.test_outbound import reply, serving

pytestmark = pytest.mark.slow

MODULE = "tests.clients.scenarios_webhooks"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with a job process that may call this machine, and tries again at once."""
    with running(tmp_path / "data", workers="1", outbound_allow="127.0.0.1", webhook_retry_s="0") as server:
        yield server


def test_a_push_reaches_the_webhook_in_spite_of_failures_and_is_replayed(
    server: Server, run_scenario: Run, repo_id: str, tmp_path: Path
) -> None:
    seen: list[tuple[str, dict[str, object]]] = []
    arrived = threading.Condition()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with arrived:
            seen.append((handler.headers["X-Webhook-Secret"], body))
            arrived.notify_all()
        reply(handler, 500 if len(seen) <= 2 else 200)

    with serving(answer) as port:
        run_scenario("webhooks", repo_id, f"http://127.0.0.1:{port}/hook", module=MODULE)
        with arrived:
            assert arrived.wait_for(lambda: len(seen) >= 3, timeout=60)
        assert {secret for secret, _ in seen} == {"secret of the test"}
        assert seen[0][1] == seen[2][1]
        assert seen[2][1]["event"] == {"scope": "repo.content", "action": "update"}

        def command(*arguments: str) -> str:
            line = [sys.executable, "-m", "adapterhub.cli", "webhook", *arguments]
            return run_client(server, tmp_path / "hf", line, HF_TOKEN=server.token).stdout

        hook = json.loads(command("list", "--json"))["id"]
        told = json.loads(command("deliveries", hook, "--json"))
        assert (told["event"], told["attempts"]) in (("repo.content.update", 3), ("repo.content.update", 2))
        command("replay", hook, told["id"])
        with arrived:
            assert arrived.wait_for(lambda: len(seen) >= 4, timeout=60)
        assert seen[3][1] == seen[0][1]
        assert f"127.0.0.1:{port}" in command("show", hook)
        run_scenario("forget", module=MODULE)
        assert command("list", "--json") == ""
    assert "secret of the test" not in "".join(server.lines)
