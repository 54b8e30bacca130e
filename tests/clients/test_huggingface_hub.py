import hashlib
import os
from pathlib import Path

import pytest

from tests.clients.conftest import Run
from tests.clients.server import Server

MIB = 1 << 20


@pytest.mark.every_client
def test_a_repository_lives_from_creation_to_deletion(run_scenario: Run, repo_id: str) -> None:
    run_scenario("repository_life", repo_id)


@pytest.mark.every_client
def test_branches_tags_and_moves_work(run_scenario: Run, repo_id: str) -> None:
    run_scenario("branches_and_tags", repo_id)


@pytest.mark.every_client
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_a_folder_comes_back_as_it_was_sent(run_scenario: Run, repo_id: str, *, xet: bool) -> None:
    run_scenario("folder_round_trip", repo_id, xet=xet)


@pytest.mark.every_client
def test_refusals_arrive_as_the_clients_own_exceptions(run_scenario: Run, repo_id: str) -> None:
    run_scenario("errors_have_their_classes", repo_id)


@pytest.mark.every_client
def test_parts_of_files_are_read(run_scenario: Run, repo_id: str) -> None:
    run_scenario("block_reads", repo_id)


def test_models_and_adapters_are_pushed_and_loaded(run_scenario: Run, repo_id: str) -> None:
    run_scenario("models_and_adapters", repo_id)


@pytest.mark.every_client
@pytest.mark.parametrize(("xet", "limit_bytes"), [(False, 64 * MIB), (True, 160 * MIB)], ids=["lfs", "xet"])
def test_a_large_upload_takes_bounded_memory(
    server: Server, run_scenario: Run, repo_id: str, tmp_path: Path, *, xet: bool, limit_bytes: int
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(200 * MIB))
    before = server.reset_peak_memory()
    run_scenario("push_large", repo_id, str(path), xet=xet)
    assert server.peak_memory() - before < limit_bytes
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert f"sha256:{digest}" in server.blobs()
    with server.http() as http:
        assert http.head(f"/{repo_id}/resolve/main/large.bin").headers["ETag"] == f'"{digest}"'


@pytest.mark.every_client
def test_equal_content_is_stored_once(server: Server, run_scenario: Run, repo_id: str, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(2 * MIB))
    run_scenario("push_large", repo_id, str(path), xet=False)
    before = server.blobs()
    run_scenario("push_large", f"{repo_id}-2", str(path), xet=False)
    assert server.blobs() == before


@pytest.mark.every_client
def test_no_token_is_in_the_log(server: Server, run_scenario: Run, repo_id: str) -> None:
    run_scenario("errors_have_their_classes", repo_id)
    log = "".join(server.lines)
    assert '"event": "request"' in log
    assert server.token not in log
    assert "ah_not-a-token" not in log
    assert "signature=" not in log
