"""Patches in a bucket of a real S3 server."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from huggingface_hub import HfApi, hf_hub_download

from tests.cli.conftest import Command
from tests.clients.server import Server, running
from tests.hub.services import samples
from tests.servers import S3Bucket

pytestmark = [pytest.mark.slow, pytest.mark.s3, pytest.mark.xdist_group("s3")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("s3-target") / "data") as server:
        yield server


def test_patches_in_a_bucket_become_repositories(
    command: Command, server: Server, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    bucket = boto3.resource("s3").Bucket(s3_bucket.bucket)
    objects = {f"loras/code/{file.path}": file.content for file in samples.lora("a/base")}
    objects |= {f"loras/base/{file.path}": file.content for file in samples.model()}
    objects |= {"loras/base/large.bin": b"\1" * (3 << 20), "loras/code/.env": b"secret", "loras/a.txt": b"a"}
    for key, content in objects.items():
        bucket.put_object(Key=f"{s3_bucket.prefix}/{key}", Body=content)
    place = f"{s3_bucket.url}/loras"
    ended = command("import", place, "--json")
    found = {one["repo"] or one["source"]: one for one in map(json.loads, ended.out.splitlines())}
    assert ended.code == 0, ended.err
    assert {name: (one["state"], one["kind"]) for name, one in found.items()} == {
        "admin/base": ("imported", "model"),
        "admin/code": ("imported", "lora"),
        "a.txt": ("skipped", ""),
    }
    assert [one["what"] for one in found["admin/code"]["skipped"]] == ["code/.env"]
    api = HfApi(endpoint=server.url, token=server.token)
    back = hf_hub_download("admin/base", "large.bin", endpoint=api.endpoint, token=api.token, cache_dir=tmp_path)
    assert Path(back).read_bytes() == objects["loras/base/large.bin"]
    bucket.put_object(Key=f"{s3_bucket.prefix}/loras/code/README.md", Body=b"# Code\n")
    again = [json.loads(line) for line in command("import", place, "--json").out.splitlines()]
    assert {one["repo"]: (one["state"], one["commits"]) for one in again if one["repo"]} == {
        "admin/base": ("unchanged", 0),
        "admin/code": ("imported", 1),
    }
    assert command("import", f"s3://{s3_bucket.bucket}-nothing/x").code == 3
    assert command("import", f"{s3_bucket.url}/nothing").code == 3
    assert command("import", "s3:bucket").code == 2
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = command("import", place)
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
