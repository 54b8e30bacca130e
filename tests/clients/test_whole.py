"""The main job from push to served merge, by public clients alone, on both kinds of state."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from huggingface_hub import HfApi

from tests import servers
from tests.clients.server import Server, run_client, running
from tests.hub.serving import models

pytestmark = pytest.mark.slow

EXPRESSION = "admin/base + 0.7*admin/one + 0.5*admin/two"


@contextmanager
def whole(data: Path, **state: str) -> Iterator[Server]:
    """A server with engine and worker, on which a base, its second version and two patches lie."""
    folder = data.parent
    models.llama(folder / "base")
    models.llama(folder / "base-v2", seed=1)
    for seed, name in enumerate(("one", "two"), start=1):
        models.lora(folder / "base", folder / name, seed=seed)
        config = folder / name / "adapter_config.json"
        config.write_text(config.read_text().replace(str(folder / "base"), "admin/base"))
        (folder / name / "README.md").unlink(missing_ok=True)
    with running(data, engine="embedded", workers="1", device="cpu", threads="1", **state) as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for name in ("base", "base-v2", "one", "two"):
            api.create_repo(f"admin/{name}")
            api.upload_folder(repo_id=f"admin/{name}", folder_path=folder / name)
        yield server


def check_the_main_job(server: Server, home: Path) -> None:
    command = [sys.executable, "-m", "adapterhub.cli"]
    environment = {"HF_TOKEN": server.token}
    run_client(server, home, [*command, "merge", "run", EXPRESSION, "--push", "admin/both"], **environment)
    again = run_client(server, home, [*command, "merge", "run", EXPRESSION, "--push", "admin/both"], **environment)
    assert "the same bytes" in again.stdout
    ported = run_client(server, home, [*command, "port", "run", "admin/one", "--to", "admin/base-v2"], **environment)
    assert "admin/one@ported/base-v2-" in ported.stdout
    found = run_client(server, home, [*command, "patch", "list", "--json"], **environment).stdout
    assert found.count('"id": "admin/') == 5
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0) as client:
        answers = [
            client.completions.create(model=model, prompt="a patch", max_tokens=12, temperature=0).choices[0].text
            for model in ("admin/both", EXPRESSION, "admin/base")
        ]
    assert answers[0] == answers[1] != answers[2]


def test_the_main_job_on_sqlite_and_a_folder(tmp_path: Path) -> None:
    with whole(tmp_path / "data") as server:
        check_the_main_job(server, tmp_path / "hf")


@pytest.mark.postgres
@pytest.mark.s3
def test_the_main_job_on_postgres_and_s3(postgres_url: str, s3_bucket: servers.S3Bucket, tmp_path: Path) -> None:
    with whole(tmp_path / "data", database_url=postgres_url, storage_url=s3_bucket.url) as server:
        check_the_main_job(server, tmp_path / "hf")
        assert not server.blobs()
