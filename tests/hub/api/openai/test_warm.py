"""Models that the operator wants in memory: loaded at the start, kept for good, and again after the engine was lost."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tests.clients.server import Server, running
from tests.hub.api.openai.conftest import push
from tests.hub.api.openai.test_completions import engine_pid
from tests.hub.serving import models

pytestmark = pytest.mark.slow

WARM = ["admin/base + 0.7*admin/one", "admin/none", "admin/one"]
POOL_BYTES = 1 << 20


def resident(server: Server) -> dict[str, Any]:
    """What is in memory, by name, once the engine is up."""
    with server.http() as http:
        listed = http.get("/v1/models").json()["data"]
    return {one["id"]: one["adapterhub"] for one in listed if one["adapterhub"]["state"] == "resident"}


def waited(server: Server, names: set[str]) -> dict[str, Any]:
    for _ in range(240):
        if names <= resident(server).keys():
            break
        time.sleep(0.25)
    return resident(server)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a base and three patches."""
    folder = tmp_path_factory.mktemp("warm")
    models.llama(folder / "base")
    for seed, name in enumerate(("one", "two", "three"), 1):
        models.lora(folder / "base", folder / name, seed=seed)
    with running(folder / "data") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for name in ("base", "one", "two", "three"):
            push(api, folder / name)
    return folder / "data"


def test_what_is_wanted_is_there_before_anybody_asks_and_comes_again(data: Path) -> None:
    with running(data, engine="embedded", device="cpu", threads="1", warm=json.dumps(WARM)) as server:
        assert waited(server, {"admin/base", "admin/one"}).keys() >= {"admin/base", "admin/one"}
        with server.http() as http:
            asked = {"model": WARM[0], "prompt": "x", "max_tokens": 1}
            assert http.post("/v1/completions", json=asked).status_code == 200
        assert any("warm.failed" in line and "admin/none" in line for line in server.lines)
        os.kill(engine_pid(server), signal.SIGKILL)
        time.sleep(1)
        assert waited(server, {"admin/base", "admin/one"}).keys() >= {"admin/base", "admin/one"}


def test_what_is_pinned_is_never_evicted(data: Path) -> None:
    base_bytes = sum(one.stat().st_size for one in (data.parent / "base").glob("*.safetensors"))
    room = str(max(base_bytes + 14_000, POOL_BYTES))
    settings = {"engine": "embedded", "device": "cpu", "threads": "1", "pool_bytes": room}
    with running(data, **settings, warm=json.dumps(["admin/one"])) as server, server.http() as http:
        waited(server, {"admin/one"})
        for weight in range(1, 120):  # of 12 kB each, more than the pool holds
            asked = {"model": f"admin/base + {weight}*admin/two", "prompt": "x", "max_tokens": 1}
            assert http.post("/v1/completions", json=asked).status_code == 200
        state = resident(server)
        assert {"admin/base", "admin/one"} <= state.keys()
