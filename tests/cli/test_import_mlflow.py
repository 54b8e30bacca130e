"""The models of a real MLflow registry."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from huggingface_hub import HfApi

from adapterhub.hub.services.commits import AddRegular
from tests import servers
from tests.cli.conftest import Command
from tests.clients.server import Server, running
from tests.hub.services import samples

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cli-mlflow")]

MIB = 1 << 20


@dataclass(frozen=True)
class Registry:
    """A real MLflow server, spoken to as its own client does."""

    url: str

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = (
            httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=60).raise_for_status().json()
        )
        return told

    def add_version(self, name: str, number: int, files: Sequence[AddRegular], location: str = "") -> str:
        """Where the files were put, under the artifacts of a run, when they were registered as the next version."""
        experiment = {"name": f"{name} {number}"} | ({"artifact_location": location} if location else {})
        run = {"experiment_id": self.post("experiments/create", experiment)["experiment_id"]}
        told = self.post("runs/create", run)["run"]["info"]
        source = f"{told['artifact_uri']}/model"
        for file in files:
            path = f"/api/2.0/mlflow-artifacts/artifacts/{source.removeprefix('mlflow-artifacts:/')}/{file.path}"
            httpx.put(self.url + path, content=file.content, timeout=60).raise_for_status()
        self.register(name, source, run_id=told["run_id"], description=f"try {number}")
        return str(source)

    def register(self, name: str, source: str, **more: str) -> None:
        tags = [{"key": "loss", "value": "0.5"}]
        self.post("model-versions/create", {"name": name, "source": source, "tags": tags, **more})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with servers.mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        if url is None:
            servers.missing("no MLflow: python3 -m venv .venv-mlflow && .venv-mlflow/bin/pip install mlflow")
        yield Registry(str(url))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("mlflow-target") / "data") as server:
        yield server


def test_versions_aliases_stages_and_words_of_a_model_come_along(
    command: Command, registry: Registry, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    team = [{"key": "team", "value": "a|b"}]
    registry.post("registered-models/create", {"name": "code lora", "description": "Writes code.", "tags": team})
    large = AddRegular("data/ä large.bin", os.urandom(3 * MIB))
    registry.add_version("code lora", 1, [*samples.lora("a/base"), large])
    registry.add_version("code lora", 2, [*samples.lora("a/base", r=3), large, AddRegular("README.md", b"# Mine\n")])
    registry.post("registered-models/alias", {"name": "code lora", "alias": "champion", "version": "1"})
    stage = {"name": "code lora", "version": "2", "stage": "Production", "archive_existing_versions": False}
    registry.post("model-versions/transition-stage", stage)
    registry.post("registered-models/create", {"name": "empty"})

    def run(*arguments: str) -> dict[str, dict[str, Any]]:
        ended = command("import", f"mlflow:{registry.url}", "--json", *arguments)
        assert ended.code == 0, ended.err
        return {one["repo"] or one["source"]: one for one in map(json.loads, ended.out.splitlines())}

    assert run("--dry-run")["admin/code-lora"]["kind"] == "lora"
    found = run()
    assert found["empty"]["state"] == "skipped"
    code = found["admin/code-lora"]
    assert (code["state"], code["kind"], code["commits"]) == ("imported", "lora", 2)
    assert (code["branches"], code["tags"]) == (["main", "champion", "production"], ["v1", "v2"])
    api = HfApi(endpoint=server.url, token=server.token)

    def read(path: str, revision: str) -> bytes:
        return Path(api.hf_hub_download("admin/code-lora", path, revision=revision, cache_dir=tmp_path)).read_bytes()

    assert read(large.path, "v2") == large.content
    assert read("README.md", "main") == b"# Mine\n"
    card = read("README.md", "champion").decode()
    for told in ("# code lora", "Writes code.", "## Version 1", "try 1", "| team | a\\|b |", "| loss | 0.5 |"):
        assert told in card
    refs = api.list_repo_refs("admin/code-lora")
    commits = {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]}
    assert commits["champion"] == commits["v1"] != commits["v2"] == commits["main"] == commits["production"]
    last = api.list_repo_commits("admin/code-lora")[0]
    assert last.message.splitlines()[-1] == f"Imported-From: mlflow:{registry.url}#code%20lora@v2"

    registry.post("registered-models/alias", {"name": "code lora", "alias": "champion", "version": "2"})
    again = run()["admin/code-lora"]
    assert (again["state"], again["commits"], again["sent_bytes"]) == ("imported", 0, 0)
    assert read("README.md", "champion") == b"# Mine\n"
    assert run()["admin/code-lora"]["state"] == "unchanged"


def test_addresses_outside_the_registry_are_followed_only_when_asked(
    command: Command,
    registry: Registry,
    server: Server,
    s3_bucket: servers.S3Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    bucket = boto3.resource("s3").Bucket(s3_bucket.bucket)
    registry.post("registered-models/create", {"name": "local"})
    folder = Path(registry.add_version("local", 1, [], tmp_path.as_uri()).removeprefix("file://"))
    folder.mkdir(parents=True)
    for file in samples.lora("a/base"):
        (folder / file.path).write_bytes(file.content)
        bucket.put_object(Key=f"{s3_bucket.prefix}/{file.path}", Body=file.content)
    registry.post("registered-models/create", {"name": "bucket"})
    registry.register("bucket", s3_bucket.url)
    for name in ("local", "bucket"):
        place = f"mlflow:{registry.url}#{name}"
        refused = command("import", place)
        assert refused.code == 4
        assert "outside the MLflow server; --follow-uris reads it" in refused.err
        followed = command("import", place, "--follow-uris", "--json")
        assert json.loads(followed.out)["kind"] == "lora", followed.out


def test_what_is_no_registry_or_not_in_it_is_said_in_one_line(
    command: Command, registry: Registry, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    places = {f"{registry.url}#no'thing": 3, "nonsense": 2, "http://127.0.0.1:9": 1, server.url: 3}
    for place, code in places.items():
        ended = command("import", f"mlflow:{place}")
        assert (ended.code, len(ended.err.splitlines())) == (code, 1)
