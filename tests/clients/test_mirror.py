"""One hub reads another: two real servers, unmodified clients, and the other one stopped in the end."""

import json
from pathlib import Path

import httpx

from tests.clients.conftest import scenario_runner
from tests.clients.server import running

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
