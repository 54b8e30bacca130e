"""What Prometheus reads while models are served, by its own parser."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import HfApi
from prometheus_client.parser import text_string_to_metric_families

from tests.clients.server import Server, running
from tests.hub.api.openai.conftest import push
from tests.hub.api.openai.test_completions import engine_pid
from tests.hub.serving import models

Key = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, so that all it counts is known."""
    folder = tmp_path_factory.mktemp("measured")
    models.llama(folder / "base")
    models.lora(folder / "base", folder / "one", seed=1)
    with running(folder / "data", engine="embedded", device="cpu", threads="1") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for name in ("base", "one"):
            push(api, folder / name)
        yield server


def read(server: Server) -> dict[Key, float]:
    reply = httpx.get(f"{server.url}/metrics", timeout=30)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(found: dict[Key, float], name: str, **labels: str) -> float:
    return found.get((f"adapterhub_{name}", frozenset(labels.items())), 0.0)


def more(before: dict[Key, float], after: dict[Key, float], name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def test_requests_tokens_and_times_are_counted(measured: Server) -> None:
    with openai.OpenAI(base_url=f"{measured.url}/v1", api_key=measured.token, max_retries=0) as client:
        client.completions.create(model="admin/base", prompt="x", max_tokens=1)
        before = read(measured)
        asked: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 7, "temperature": 0}
        whole = client.chat.completions.create(model="admin/base", **asked)
        for _ in client.chat.completions.create(model="admin/base + 0.5*admin/one", stream=True, **asked):
            pass
        client.embeddings.create(model="admin/base", input="four")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="admin/none", prompt="x")
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="admin/base", prompt="x", temperature=9)
    after = read(measured)
    assert whole.usage is not None
    read_tokens, written = whole.usage.prompt_tokens, whole.usage.completion_tokens
    assert more(before, after, "serve_requests_total", route=CHAT, status="200") == 2
    assert more(before, after, "serve_requests_total", route="/v1/embeddings", status="200") == 1
    assert more(before, after, "serve_requests_total", route=TEXT, status="404") == 1
    assert more(before, after, "serve_requests_total", route=TEXT, status="400") == 1
    assert more(before, after, "variant_errors_total", code="InvalidRequest") == 1
    assert more(before, after, "serve_request_seconds_count", route=CHAT) == 2
    assert more(before, after, "serve_tokens_total", kind="prompt") == 2 * read_tokens + 4
    assert written < more(before, after, "serve_tokens_total", kind="completion") <= written + 7
    assert more(before, after, "serve_ttft_seconds_count") == 2
    assert more(before, after, "serve_queue_seconds_count") == 2
    assert more(before, after, "serve_tpot_seconds_count") == 2
    assert (
        0 < more(before, after, "serve_ttft_seconds_sum") < more(before, after, "serve_request_seconds_sum", route=CHAT)
    )
    assert (value(after, "serve_inflight"), value(after, "serve_queued")) == (0, 0)


MERGED = {"execution": "merged"}


def test_the_engine_tells_of_its_models(measured: Server) -> None:
    with measured.http() as http:
        for weight in ("0.1", "0.2", "0.1"):
            asked = {"model": f"admin/base + {weight}*admin/one", "prompt": "x", "max_tokens": 1, "adapterhub": MERGED}
            assert http.post(TEXT, json=asked).status_code == 200
        before = read(measured)
        http.post(TEXT, json=asked)
        again = read(measured)
        http.post(TEXT, json={**asked, "model": "admin/base + 0.3*admin/one"})
        after = read(measured)
    assert more(before, again, "variant_cache_misses_total") == 0
    assert more(before, again, "variant_cache_hits_total") == 2  # the base, and the variant of it
    assert more(again, after, "variant_cache_misses_total") == 1
    assert more(again, after, "variant_materialize_seconds_count") == 1
    assert more(again, after, "variant_materialize_seconds_sum") > 0
    assert more(again, after, "variant_switch_total") == 1
    assert more(again, after, "variant_bytes", tier="variant") == 2 * (32 * 32 + 16 * 32) * 4
    assert more(again, after, "variant_bytes", tier="base") == more(again, after, "variant_bytes", tier="adapter") == 0
    assert value(after, "variant_bytes", tier="base") > 0
    assert value(after, "variant_singleflight_waiters") == 0
    assert value(after, "engine_up") == 1


def test_no_label_says_what_a_user_chose(measured: Server) -> None:
    with measured.http() as http:
        http.post("/models/admin/secret-name/pipeline/zork", json={"inputs": "x"})
        http.post("/models/admin/base/v1/chat/completions", json={"model": "x", "messages": []})
        http.post("/secret-path/admin")
    found = read(measured)
    labels = {label for _, pairs in found for label in pairs}
    text = json.dumps(sorted(labels))
    assert "secret" not in text
    assert "admin" not in text
    assert {("route", "/models/{model}/v1/chat/completions"), ("route", "/models/{model}/pipeline/{task}")} <= labels


def test_what_the_engine_has_is_shown_until_it_is_answered(measured: Server) -> None:
    asked = {"model": "admin/base", "prompt": "x", "max_tokens": 1}
    with measured.http() as http, ThreadPoolExecutor() as pool:
        engine = engine_pid(measured)
        os.kill(engine, signal.SIGSTOP)
        try:
            waiting = [pool.submit(http.post, TEXT, json=asked) for _ in range(3)]
            until(measured, serve_inflight=3, serve_queued=3, engine_up=0)
        finally:
            os.kill(engine, signal.SIGCONT)
        assert [one.result().status_code for one in waiting] == [200] * 3
        until(measured, serve_inflight=0, serve_queued=0, engine_up=1)


def until(server: Server, **wanted: float) -> None:
    """Passes once the gauges are so."""
    for _ in range(100):
        found = read(server)
        if all(value(found, name) == number for name, number in wanted.items()):
            return
        time.sleep(0.1)
    pytest.fail(f"{wanted} was not reached: {found}")


def is_followed(server: Server, lost: int) -> bool:
    """Whether the next engine is there already, before anybody asked."""
    try:
        return engine_pid(server) != lost
    except StopIteration:
        return False


@pytest.mark.slow
def test_a_lost_engine_is_seen_and_its_counters_begin_anew(measured: Server) -> None:
    with measured.http() as http:
        asked = {"model": "admin/base", "prompt": "x", "max_tokens": 1}
        for model in ("admin/base", "admin/one"):
            assert http.post(TEXT, json={**asked, "model": model}).status_code == 200
        before = read(measured)
        assert http.get("/health/ready").json()["bases"] == 1
        lost = engine_pid(measured)
        os.kill(lost, signal.SIGSTOP)
        try:
            stuck = read(measured)
            assert value(stuck, "engine_up") == 0
        finally:
            os.kill(lost, signal.SIGKILL)
        with suppress(httpx.HTTPError):
            for _ in range(200):
                if http.get("/health/ready").status_code == 503 or is_followed(measured, lost):
                    break
                time.sleep(0.02)
            else:
                pytest.fail("a dead engine was called ready")
        assert http.post(TEXT, json=asked).status_code == 200
        assert http.get("/health/ready").status_code == 200
    after = read(measured)
    assert value(after, "engine_up") == 1
    assert value(after, "variant_cache_misses_total") == 1 < value(before, "variant_cache_misses_total")
    routes = {"route": TEXT, "status": "200"}
    assert value(after, "serve_requests_total", **routes) == value(before, "serve_requests_total", **routes) + 1


def test_the_names_are_those_that_the_documentation_lists(measured: Server) -> None:
    page = Path("docs/serving.md").read_text()
    reply = httpx.get(f"{measured.url}/metrics", timeout=30)
    served = {
        family.name for family in text_string_to_metric_families(reply.text) if family.name.startswith("adapterhub_")
    }
    listed = {name.removesuffix("_total") for name in page.split("`") if name.startswith("adapterhub_")}
    assert {name for name in served if not name.endswith("_created")} == listed
