"""Files, listings and metadata, by unmodified clients."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import servers
from tests.clients.conftest import Run, scenario_runner
from tests.clients.relay import relay
from tests.clients.server import Server, running

pytestmark = pytest.mark.slow

SMALL_PARTS = {"multipart_min_bytes": str(1 << 20), "multipart_part_bytes": str(1 << 18)}
MODULE = "tests.clients.scenarios_files"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes files from 1 MiB on in parts of 256 KiB."""
    with running(tmp_path_factory.mktemp("files") / "data", **SMALL_PARTS) as server:
        yield server


@pytest.fixture
def run(server: Server, tmp_path: Path, python: Path) -> Run:
    """Runs one function of `scenarios_files.py`."""
    return partial(scenario_runner(server, tmp_path / "hf", python), module=MODULE)


def paths(server: Server, method: str, since: int = 0) -> list[str]:
    """What was asked of the server with that method from its line `since` on, oldest first."""
    events = [json.loads(line) for line in server.lines[since:] if line.startswith("{")]
    return [event["path"] for event in events if event.get("event") == "request" and event["method"] == method]


def test_a_large_file_goes_in_parts_over_lfs(server: Server, run: Run, repo_id: str) -> None:
    before = len(server.lines)
    run("large_file_in_parts", repo_id, xet=False)
    sent = paths(server, "PUT", before)
    assert sum("/parts/" in path for path in sent) == 12
    assert sum(path.endswith("/complete") for path in paths(server, "POST", before)) == 1
    assert list((server.data / "lfs-parts").iterdir()) == []


@pytest.mark.s3
def test_a_large_file_goes_in_parts_to_s3(
    s3_bucket: servers.S3Bucket, repo_id: str, tmp_path: Path, python: Path
) -> None:
    with running(tmp_path / "data", storage_url=s3_bucket.url, **SMALL_PARTS) as server:
        scenario_runner(server, tmp_path / "hf", python)("large_file_in_parts", repo_id, module=MODULE, xet=False)
        assert not server.blobs()
        assert list((server.data / "lfs-parts").iterdir()) == []


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_files_are_copied_between_repositories(server: Server, run: Run, repo_id: str, *, xet: bool) -> None:
    before = len(server.blobs())
    run("copies_between_repositories", repo_id, xet=xet)
    assert len(server.blobs()) - before <= 4  # the two files, .gitattributes, and with Xet one xorb


def test_a_repository_is_duplicated_with_its_history(run: Run, repo_id: str) -> None:
    run("duplicated_repository", repo_id)


def test_file_names_may_be_in_any_script(run: Run, repo_id: str) -> None:
    run("names_in_any_script", repo_id)


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_the_clients_file_system_works(run: Run, repo_id: str, *, xet: bool) -> None:
    run("file_system", repo_id, xet=xet)


def test_patterns_choose_what_is_sent_and_fetched(run: Run, repo_id: str) -> None:
    run("patterns", repo_id)


def test_other_types_of_repositories_are_refused_in_one_sentence(run: Run, repo_id: str) -> None:
    run("other_types_are_refused", repo_id)


def test_metadata_is_told_as_the_client_reads_it(run: Run, repo_id: str) -> None:
    run("metadata", repo_id)


def test_models_are_listed_by_all_that_the_client_can_ask_for(run: Run, repo_id: str) -> None:
    run("lists", repo_id)


def test_a_second_download_asks_for_headers_alone_and_none_is_needed_offline(
    server: Server, run: Run, repo_id: str
) -> None:
    run("downloads", repo_id)
    fetched = [path for path in paths(server, "GET") if path.startswith(f"/{repo_id}/resolve/")]
    assert fetched.count(f"/{repo_id}/resolve/main/config.json") == 2
    assert fetched.count(f"/{repo_id}/resolve/main/large.bin") == 2  # the second is the resumed one
    before = len(server.lines)
    run("offline", repo_id, HF_HUB_OFFLINE="1")
    assert [line for line in server.lines[before:] if repo_id in line] == []


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_content_that_the_repository_has_is_not_sent_again(
    server: Server, run: Run, repo_id: str, tmp_path: Path, *, xet: bool
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(random.Random(repo_id).randbytes(3 << 20))
    with relay(server) as through:
        run("first_content", repo_id, str(path), xet=xet, HF_ENDPOINT=through.url)
        assert through.received > 3 << 20
        before = through.received
        run("known_content", repo_id, str(path), xet=xet, HF_ENDPOINT=through.url)
        assert through.received - before < 64 << 10


def test_parts_take_bounded_memory(server: Server, run: Run, repo_id: str, tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(repo_id).randbytes(64 << 20))
    before = server.reset_peak_memory()
    run("first_content", repo_id, str(path), xet=False)
    assert server.peak_memory() - before < 40 << 20
