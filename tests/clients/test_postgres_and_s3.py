"""The whole once more, with rows in PostgreSQL and bytes in S3."""

import sys
from pathlib import Path

import pytest

from tests import servers
from tests.clients.server import run_client, running

pytestmark = pytest.mark.slow


@pytest.mark.postgres
@pytest.mark.s3
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_a_folder_comes_back_from_postgres_and_s3(
    postgres_url: str, s3_bucket: servers.S3Bucket, tmp_path: Path, *, xet: bool
) -> None:
    settings = {"database_url": postgres_url, "storage_url": s3_bucket.url}
    with running(tmp_path / "data", **settings) as server:
        environment = {"HF_TOKEN": server.token} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
        command = [sys.executable, "-m", "tests.clients.scenarios"]
        for scenario in ("repository_life", "branches_and_tags", "folder_round_trip"):
            run_client(server, tmp_path / "hf", [*command, scenario, f"admin/{scenario}"], **environment)
        assert not server.blobs()
