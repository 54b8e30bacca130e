"""`upload_large_folder` of the clients that have it, killed in the middle and started again."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import OLDER, Run
from tests.clients.server import ROOT, Server, client_environment

MODULE = "tests.clients.scenarios_large_folder"


def first_bytes(server: Server, since: int) -> bool:
    """Whether a file's bytes have come to the server after its line `since`."""
    told = [line for line in server.lines[since:] if '"status": 200' in line]
    return any('"path": "/uploads/' in line or "/v1/xorbs/" in line for line in told)


@pytest.mark.slow
@pytest.mark.parametrize("python", OLDER, indirect=True)
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_a_killed_upload_of_a_large_folder_goes_on(
    server: Server, run_scenario: Run, python: Path, repo_id: str, tmp_path: Path, *, xet: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.bin").write_bytes(random.Random(f"{repo_id}{number}").randbytes(8 << 20))
    given = {"HF_TOKEN": server.token} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
    before = len(server.lines)
    command = [str(python), "-m", MODULE, "send", repo_id, str(folder)]
    environment = client_environment(server, tmp_path / "hf", **given)
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as client:
        while client.poll() is None and not first_bytes(server, before):
            os.sched_yield()
        assert client.poll() is None
        client.kill()
    with server.http() as http:
        names = {entry["path"] for entry in http.get(f"/api/models/{repo_id}/tree/main").json()}
    assert len(names) < 13
    run_scenario("send", repo_id, str(folder), module=MODULE, xet=xet)
    run_scenario("compare", repo_id, str(folder), module=MODULE)
