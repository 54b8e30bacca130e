"""Chunks that a client remembers are swept away under it: it must not notice."""

import hashlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import now
from adapterhub.hub.services.wiring import open_hub
from adapterhub.hub.services.xet_retention import Swept, sweep
from adapterhub.hub.settings import Settings
from tests.clients.conftest import Run
from tests.clients.server import Server, running

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of its own: what is swept is counted."""
    with running(tmp_path / "data") as server:
        yield server


@pytest.fixture
def beside(server: Server) -> Iterator[Hub]:
    """The state of the running server, opened a second time as its job processes do."""
    hub = open_hub(Settings(data=server.data))
    yield hub
    hub.db.close()


def test_a_client_with_a_warm_cache_does_not_notice_a_sweep(
    server: Server, beside: Hub, run_scenario: Run, repo_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    content = os.urandom(6 * MIB)
    path.write_bytes(content)
    run_scenario("push_large", repo_id, str(path))
    changed = content[: 3 * MIB] + b"changed" + content[3 * MIB :]
    path.write_bytes(changed)
    run_scenario("push_large", repo_id, str(path))

    assert sweep(beside, timedelta(0), now()).repositories >= 1
    dropped = sweep(beside, timedelta(0), now() + timedelta(days=2))
    assert dropped.xorbs >= 2
    assert 6 * MIB < dropped.size_bytes < 9 * MIB  # the second upload sent its changed chunks only
    assert sweep(beside, timedelta(0), now()) == Swept(0, 0, 0)

    again = changed[: 4 * MIB] + b"changed again" + changed[4 * MIB :]
    path.write_bytes(again)
    run_scenario("push_large", repo_id, str(path))
    with server.http() as http:
        served = http.get(f"/{repo_id}/resolve/main/large.bin").content
    assert hashlib.sha256(served).digest() == hashlib.sha256(again).digest()
