"""A hub that hands over to a vLLM or SGLang server: its answers are those of the embedded engine, token for token.

The server is `tests.hub.serving.remote_server`, which implements what those document and computes with the files.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file

from tests.clients.server import ROOT, Server, running
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models

pytestmark = pytest.mark.slow

KEY = "the-key-of-the-engine"
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}<assistant>"

LORAS = (
    "admin/one",
    "admin/base + 0.7*admin/one - 0.3*admin/two",
    "admin/base:admin/two",
    "admin/base + -1.5*admin/one",
    "admin/base + 0.5*admin/one + 0.5*admin/wide",
)
DENSE = (
    "ties(admin/base; 0.6*admin/one, 0.4*admin/two, density=0.5)",
    "admin/base + 0.8*admin/dora",
)
CHAT: Any = [{"role": "user", "content": "hello"}]


@dataclass
class Engine:
    """A running server."""

    kind: str
    url: str
    process: subprocess.Popen[bytes]

    def seen(self, path: str | None = None) -> list[Any]:
        with self.http() as http:
            found = http.get("/seen").json()
        return [one for one in found if path is None or one.get("path") == path]

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def engine(kind: str, model: Path, port: int = 0, name: str = "admin/base") -> Iterator[Engine]:
    port = port or free_port()
    words = [kind, str(model), "--name", name, "--port", str(port), "--api-key", KEY]
    process = subprocess.Popen([sys.executable, "-m", "tests.hub.serving.remote_server", *words], cwd=ROOT)
    found = Engine(kind, f"http://127.0.0.1:{port}", process)
    try:
        wait_for(found)
        yield found
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(one: Engine) -> None:
    for _ in range(600):
        assert one.process.poll() is None, "the engine ended"
        try:
            with one.http() as http:
                if http.get("/health").status_code == 200:
                    return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("the engine did not start")


@dataclass
class Lab:
    """A data folder with models, and what the embedded engine says of them."""

    root: Path
    completions: dict[str, Any]
    chats: dict[str, Any]
    logprobs: list[float]
    likeliest: list[list[tuple[str, float]]]

    @property
    def base(self) -> Path:
        return self.root / "base"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    models.llama(root / "base")
    (root / "base" / "chat_template.jinja").write_text(TEMPLATE)
    models.lora(root / "base", root / "one", seed=1)
    models.lora(root / "base", root / "two", seed=2, targets=("o_proj", "down_proj", "q_proj"))
    models.lora(root / "base", root / "dora", seed=3)
    models.lora(root / "base", root / "wide", seed=4, targets=("v_proj",), r=6)
    models.lora(root / "base", root / "widest", seed=5, targets=("q_proj",), r=12)
    models.llama(root / "other", seed=9)
    make_dora(root / "dora")
    lab = Lab(root, {}, {}, [], [])
    with running(root / "data", engine="embedded", device="cpu", threads="1") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for name in ("base", "one", "two", "dora", "wide", "widest", "other"):
            push(api, root / name)
        with client_of(server) as client:
            for model in ("admin/base", *LORAS, *DENSE):
                lab.completions[model] = told(complete(client, model))
                lab.chats[model] = told_chat(chat(client, model))
            lab.logprobs += complete(client, LORAS[0], logprobs=3).choices[0].logprobs.token_logprobs
            lab.likeliest += likeliest(client, LORAS[1])
    assert len({one["text"] for one in lab.completions.values()}) == len(lab.completions), "the answers must differ"
    return lab


def make_dora(folder: Path) -> None:
    """Turn a plain LoRA into a DoRA, whose magnitudes are not the norms of the base."""
    import torch
    from safetensors.torch import save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in list(tensors):
        if name.endswith("lora_B.weight"):
            rows = len(tensors[name])
            magnitudes = torch.rand(rows, generator=torch.Generator().manual_seed(rows)) + 1.0
            tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = magnitudes
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))


@contextmanager
def hub(lab: Lab, one: Engine, **settings: str) -> Iterator[Server]:
    given = {
        "engine": "external",
        "engine_url": one.url,
        "engine_api_key": KEY,
        "engine_folder": str(lab.root / "handoff"),
        "engine_max_rank": "8",
        "threads": "1",
    }
    with running(lab.root / "data", **given | settings) as server:
        yield server


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)


def complete(client: openai.OpenAI, model: str, prompt: str = "hello", **options: Any) -> Any:
    options = {"max_tokens": 16, "temperature": 0, **options}
    return client.completions.create(model=model, prompt=prompt, **options)


def chat(client: openai.OpenAI, model: str) -> Any:
    return client.chat.completions.create(model=model, messages=CHAT, max_tokens=12, temperature=0)


def told(answer: Any) -> dict[str, Any]:
    return {
        "text": answer.choices[0].text,
        "reason": answer.choices[0].finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
    }


def told_chat(answer: Any) -> dict[str, Any]:
    return {
        "text": answer.choices[0].message.content,
        "reason": answer.choices[0].finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
    }


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def handed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Engine, Server]]:
    """An engine that holds two adapters at most, and a hub that hands over LoRAs alone."""
    with engine(request.param, lab.base) as one, hub(lab, one, engine_max_loras="2") as server:
        yield one, server


def test_loras_and_their_sums_answer_like_the_embedded_engine(lab: Lab, handed: tuple[Engine, Server]) -> None:
    one, server = handed
    with client_of(server) as client:
        for _ in range(2):  # the second time all but the last two have left the engine and come again
            for model in ("admin/base", *LORAS):
                assert told(complete(client, model)) == lab.completions[model], model
                assert told_chat(chat(client, model)) == lab.chats[model], model
    loads = one.seen("/v1/load_lora_adapter" if one.kind == "vllm" else "/load_lora_adapter")
    unloads = one.seen("/v1/unload_lora_adapter" if one.kind == "vllm" else "/unload_lora_adapter")
    assert len(loads) == 2 * len(LORAS)
    assert len(unloads) == len(loads) - 2
    for load in loads:
        folder = Path(load["lora_path"])
        assert folder.name == load["lora_name"]
        assert folder.name.startswith("sha256-")
        config = json.loads((folder / "adapter_config.json").read_text())
        assert not config["rank_pattern"]
        assert not config["alpha_pattern"]
        ranks = {len(t) for name, t in load_file(folder / "adapter_model.safetensors").items() if "lora_A" in name}
        assert ranks == {config["r"]}


def test_a_stream_tells_pieces_log_probabilities_and_usage(lab: Lab, handed: tuple[Engine, Server]) -> None:
    _, server = handed
    with client_of(server) as client:
        stream = complete(client, LORAS[0], stream=True, logprobs=3, stream_options={"include_usage": True})
        chunks = list(stream)
        whole = complete(client, LORAS[0], logprobs=3)
    text = "".join(one.choices[0].text for one in chunks if one.choices)
    assert text == lab.completions[LORAS[0]]["text"] == whole.choices[0].text
    assert chunks[-1].usage.prompt_tokens == lab.completions[LORAS[0]]["prompt_tokens"]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 16
    logprobs = whole.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == whole.usage.completion_tokens
    assert logprobs.token_logprobs == pytest.approx(lab.logprobs, abs=1e-3)


def test_a_chat_tells_the_likeliest_tokens(lab: Lab, handed: tuple[Engine, Server]) -> None:
    _, server = handed
    with client_of(server) as client:
        found = likeliest(client, LORAS[1])
    assert [len(one) for one in found] == [3] * len(found)
    for one, expected in zip(found, lab.likeliest, strict=True):
        assert [text for text, _ in one] == [text for text, _ in expected]
        assert [value for _, value in one] == pytest.approx([value for _, value in expected], abs=1e-3)


def likeliest(client: openai.OpenAI, model: str) -> list[list[tuple[str, float]]]:
    found = client.chat.completions.create(
        model=model, messages=CHAT, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    content = found.choices[0].logprobs.content  # type: ignore[union-attr]
    return [[(top.token, top.logprob) for top in one.top_logprobs] for one in content or ()]


def test_loraxs_clients_are_answered_too(lab: Lab, handed: tuple[Engine, Server]) -> None:
    _, server = handed
    asked = {"adapter_id": "admin/one", "max_new_tokens": 16, "details": True}
    with server.http() as http:
        found = http.post("/generate", json={"inputs": "hello", "parameters": asked}).json()
    assert found["generated_text"] == lab.completions["admin/one"]["text"]
    told = [one["logprob"] for one in found["details"]["tokens"]]
    assert told == pytest.approx(lab.logprobs, abs=1e-3)


def test_embeddings_are_those_of_the_adapter(handed: tuple[Engine, Server]) -> None:
    _, server = handed
    with client_of(server) as client:
        found = [
            client.embeddings.create(model=model, input=["a", "bc"], encoding_format="float").data
            for model in ("admin/base", "admin/one")
        ]
    assert [len(data) for data in found] == [2, 2]
    assert found[0][0].embedding != found[1][0].embedding
    with server.http() as http:
        answer = http.post("/models/admin/base/pipeline/text-classification", json={"inputs": "x"})
    assert answer.status_code == 400
    assert "embedded" in answer.text


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("admin/widest", "has rank 12 and the engine takes 8"),
        ("admin/dora", "it is a DoRA"),
        (DENSE[0], "ties is no weighted sum of patches"),
        ("admin/other", "the external engine serves admin/base"),
    ],
)
def test_what_is_no_lora_of_the_engines_base_is_refused(handed: tuple[Engine, Server], model: str, says: str) -> None:
    _, server = handed
    with client_of(server) as client, pytest.raises(openai.BadRequestError, match=says):
        complete(client, model)


def test_another_commit_of_the_base_is_another_base(lab: Lab, handed: tuple[Engine, Server]) -> None:
    _, server = handed
    api = HfApi(endpoint=server.url, token=server.token)
    api.create_branch("admin/base", branch="next", exist_ok=True)
    weights = str(lab.root / "other" / "model.safetensors")
    api.upload_file(repo_id="admin/base", revision="next", path_or_fileobj=weights, path_in_repo="model.safetensors")
    with client_of(server) as client:
        complete(client, "admin/base")
        with pytest.raises(openai.BadRequestError, match="serves one base"):
            complete(client, "admin/base@next")
        assert told(complete(client, "admin/one")) == lab.completions["admin/one"]


def test_what_is_loaded_is_listed(handed: tuple[Engine, Server]) -> None:
    _, server = handed
    with client_of(server) as client:
        complete(client, "admin/one")
        found = {one.id: one.to_dict()["adapterhub"] for one in client.models.list()}
    assert found["admin/one"]["state"] == "resident"  # type: ignore[index]
    assert found["admin/wide"]["state"] == "cold"  # type: ignore[index]
    with server.http() as http:
        assert http.get("/health/ready").json()["engine"] == "external"


def test_a_client_that_hangs_up_stops_the_engine(handed: tuple[Engine, Server]) -> None:
    one, server = handed
    with client_of(server) as client:
        stream = complete(client, "admin/one", "slow hello", max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    for _ in range(100):
        if cancelled := [event for event in one.seen() if "cancelled_after" in event]:
            break
        time.sleep(0.1)
    assert cancelled[-1]["cancelled_after"] < 200


def test_asked_at_once_it_is_loaded_once(lab: Lab, handed: tuple[Engine, Server]) -> None:
    one, server = handed
    model = "admin/base + 0.31*admin/one"
    texts: list[str] = []

    def ask() -> None:
        with client_of(server) as client:
            texts.append(told(complete(client, model))["text"])

    before = len(one.seen("/v1/load_lora_adapter")) + len(one.seen("/load_lora_adapter"))
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    assert len(set(texts)) == 1
    assert len(one.seen("/v1/load_lora_adapter")) + len(one.seen("/load_lora_adapter")) == before + 1


def test_an_adapter_that_the_engine_lost_is_loaded_again(lab: Lab, handed: tuple[Engine, Server]) -> None:
    one, server = handed
    with client_of(server) as client, one.http() as http:
        assert told(complete(client, LORAS[1])) == lab.completions[LORAS[1]]
        load = one.seen("/v1/load_lora_adapter" if one.kind == "vllm" else "/load_lora_adapter")[-1]
        path = "/v1/unload_lora_adapter" if one.kind == "vllm" else "/unload_lora_adapter"
        assert http.post(path, json={"lora_name": load["lora_name"]}).status_code == 200
        assert told(complete(client, LORAS[1])) == lab.completions[LORAS[1]]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_killed_engine_is_told_and_recovered_from(lab: Lab, kind: str) -> None:
    port = free_port()
    with (
        engine(kind, lab.base, port) as one,
        hub(lab, one, warm=json.dumps([LORAS[1]])) as server,
        client_of(server) as client,
    ):
        assert told(complete(client, "admin/one")) == lab.completions["admin/one"]
        stream = complete(client, "admin/one", "slow hello", max_tokens=200, stream=True)
        next(iter(stream))
        one.kill()
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as refusal:
            complete(client, "admin/one")
        assert refusal.value.status_code == 503
        with engine(kind, lab.base, port) as again:
            assert told(complete(client, "admin/one")) == lab.completions["admin/one"]
            path = "/v1/load_lora_adapter" if kind == "vllm" else "/load_lora_adapter"
            for _ in range(300):  # what is to stay comes by itself
                if len(again.seen(path)) == 2:
                    break
                time.sleep(0.1)
            assert len(again.seen(path)) == 2


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_merged_weights_take_the_place_of_the_engines_own(lab: Lab, kind: str) -> None:
    port = free_port()
    models_asked = (DENSE[0], "admin/base", DENSE[1], LORAS[1], DENSE[0], LORAS[0])
    with (
        engine(kind, lab.base, port) as one,
        hub(lab, one, engine_dense="true") as server,
        client_of(server) as client,
    ):
        for model in models_asked:
            # the same prompt each time: what the engine kept of other weights would be seen
            assert told(complete(client, model)) == lab.completions[model], model
        check_drained(lab, server)
        assert told(complete(client, DENSE[0])) == lab.completions[DENSE[0]]
        one.kill()
        with engine(kind, lab.base, port):  # which has its own weights
            assert told(complete(client, DENSE[0])) == lab.completions[DENSE[0]]
            server.stop()
            with hub(lab, one, engine_dense="true") as other, client_of(other) as second:  # which finds merged ones
                assert told(complete(second, "admin/base")) == lab.completions["admin/base"]


def check_drained(lab: Lab, server: Server) -> None:
    """Requests of several weights at once: the engine asserts that none runs while they change."""
    wrong: list[str] = []

    def ask(model: str) -> None:
        with client_of(server) as client:
            if told(complete(client, model)) != lab.completions[model]:
                wrong.append(model)

    asked = [DENSE[0], "admin/base", LORAS[1], DENSE[1], "admin/base", LORAS[1]]
    threads = [threading.Thread(target=ask, args=[model]) for model in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_sum_of_too_many_ranks_is_truncated_where_that_is_allowed(lab: Lab) -> None:
    with engine("vllm", lab.base) as one, hub(lab, one, engine_truncate="true") as server, client_of(server) as client:
        complete(client, "admin/widest")
        [load] = one.seen("/v1/load_lora_adapter")
    assert load["lora_name"].endswith("-r8")
    facts = json.loads((Path(load["lora_path"]) / "adapterhub.json").read_text())
    assert facts["rank"] == 8
    assert 0 < facts["error"] < 1


@pytest.mark.parametrize(
    ("setting", "value", "model"),
    [
        ("engine_api_key", "another", "admin/base"),
        ("engine_mount", "/nowhere", "admin/one"),
    ],
)
def test_what_keeps_the_two_apart_is_named(lab: Lab, setting: str, value: str, model: str) -> None:
    with (
        engine("vllm", lab.base) as one,
        hub(lab, one, **{setting: value}) as server,
        client_of(server) as client,
        pytest.raises(openai.InternalServerError, match=f"ADAPTERHUB_{setting.upper()}") as refusal,
    ):
        complete(client, model)
    assert refusal.value.status_code == 503


@pytest.mark.parametrize("base", ["", "admin/base", "admin/base@" + "0" * 40])
def test_another_name_of_the_base_is_said_by_a_setting(lab: Lab, base: str) -> None:
    with (
        engine("vllm", lab.base, name="llama") as one,
        hub(lab, one, engine_base=base) as server,
        client_of(server) as client,
    ):
        if base == "admin/base":
            assert told(complete(client, "admin/one")) == lab.completions["admin/one"]
        else:
            with pytest.raises(openai.BadRequestError, match="ADAPTERHUB_ENGINE_BASE"):
                complete(client, "admin/one")
