"""One hub reads another: two real servers, unmodified clients, and the other one stopped in the end."""

import hashlib
import json
import time
from pathlib import Path

import httpx
import pytest

from tests import servers
from tests.clients.conftest import scenario_runner
from tests.clients.server import running
from tests.hub.services.farhub import FarHub, far_hub
from tests.hub.services.samples import lora, model

pytestmark = pytest.mark.slow

MODULE = "tests.clients.scenarios_mirror"
BASE = "upstream/base"
LORA = "admin/lora"


def test_a_base_of_another_hub_is_fetched_once_and_outlives_it(tmp_path: Path) -> None:
    with running(tmp_path / "far", admin_name="upstream", regular_max_bytes="4096") as far:
        scenario_runner(far, tmp_path / "far-home")("publish", BASE, module=MODULE)
        there = scenario_runner(far, tmp_path / "far-home")("shown", BASE, module=MODULE).stdout
        commit = json.loads(there)[0][1]
        told = {"mirror_url": far.url, "outbound_allow": far.url.removeprefix("http://"), "mirror_ttl_s": "0"}
        with running(tmp_path / "near", **told) as near:
            run = scenario_runner(near, tmp_path / "home")
            assert run("shown", BASE, module=MODULE).stdout == there
            digest = "sha256:" + next(f[3] for f in json.loads(there)[0][3] if f[0] == "model.safetensors")
            assert digest in far.blobs() - near.blobs()
            run("push_adapter", BASE, LORA, module=MODULE)
            assert digest in near.blobs()
            run("read", BASE, commit, module=MODULE)
            run("refuse_changes", BASE, module=MODULE)
            run("missing", "upstream/nothing", module=MODULE)
            with near.http() as http:
                assert http.get(f"/{BASE}/info/refs", params={"service": "git-upload-pack"}).status_code == 403
                name = f"/api/admin/mirrors/{BASE}"
                assert http.put(name, json={"pinned": True}).status_code == 204
                (row,) = http.get("/api/admin/mirrors").json()["items"]
                assert (row["name"], row["source"], row["is_pinned"]) == (BASE, far.url, True)
                assert row["size_bytes"] > 0
                assert http.post(f"{name}/evict").json() == {"files": 0}, "they came just now"
                assert http.post(f"{name}/refresh").status_code == 204
                assert http.put(f"/api/admin/mirrors/{LORA}", json={"pinned": True}).status_code == 400
                assert httpx.get(f"{near.url}/api/admin/mirrors").status_code == 401
            run("read", BASE, commit, module=MODULE)
            host = far.url.removeprefix("http://")
            far.stop()
            afresh = scenario_runner(near, tmp_path / "fresh-home")
            afresh("load_adapter", LORA, module=MODULE)
            afresh("read", BASE, commit, module=MODULE)
            afresh("unreachable", "upstream/unseen", host, module=MODULE)
            head = httpx.head(f"{near.url}/{BASE}/resolve/main/config.json")
            assert head.status_code == 200
            assert host in head.headers["x-hf-warning"]


def finished(http: httpx.Client, job: str) -> dict[str, object]:
    """The job as it ended."""
    deadline = time.monotonic() + 120
    while (found := http.get(f"/api/jobs/{job}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return dict(found)


def merges_what_another_hub_has(tmp_path: Path, **settings: str) -> None:
    """A private base of another hub, merged here by a job process, for members of the organisation that may."""
    base, code = model(), lora("far/base")
    with far_hub(tmp_path / "far") as far:
        far.push("base", base, private=True)
        told = {"mirror_url": far.url, "outbound_allow": "127.0.0.1", "workers": "1", "regular_max_bytes": "1024"}
        with running(tmp_path / "near", **told, **settings) as near, near.http() as http:
            assert http.post("/api/repos/create", json={"name": "code"}).status_code == 200
            for file in code:
                assert http.put(f"/api/patches/admin/code/files/{file.path}", content=file.content).is_success
            wish = {"expression": "far/base + admin/code", "push": "admin/both"}
            assert http.post("/api/merges", json=wish).status_code == 404
            assert http.post("/api/organisations", json={"name": "team"}).is_success
            kept = {"token": far.token("near")}
            assert http.put("/api/organisations/team/mirror-token", json=kept).status_code == 204
            asked = http.post("/api/merges", json=wish)
            assert asked.status_code in (200, 201, 202), asked.text
            done = finished(http, asked.json()["id"])
            assert done["state"] == "succeeded", done
            assert http.get("/api/models/admin/both").json()["private"] is True
            outlives(far, http, base[1].content)
            assert all(kept["token"] not in line for line in (*near.lines, *far.server.lines))


def outlives(far: FarHub, http: httpx.Client, weights: bytes) -> None:
    """The base, whose bytes the job brought, is served when the other hub is gone."""
    far.server.stop()
    sent = http.get("/far/base/resolve/main/model.safetensors")
    assert hashlib.sha256(sent.content).digest() == hashlib.sha256(weights).digest()


def test_a_job_process_brings_a_private_base(tmp_path: Path) -> None:
    merges_what_another_hub_has(tmp_path)


@pytest.mark.postgres
@pytest.mark.s3
def test_a_job_process_brings_a_private_base_to_postgres_and_s3(
    postgres_url: str, s3_bucket: servers.S3Bucket, tmp_path: Path
) -> None:
    merges_what_another_hub_has(tmp_path, database_url=postgres_url, storage_url=s3_bucket.url)
