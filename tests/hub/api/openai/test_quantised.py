"""A base that bitsandbytes packed into 4 bits, pushed as it is, and a LoRA beside it: by the clients, over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import peft
import pytest
import torch
import transformers
from huggingface_hub import HfApi

from tests.clients.server import running
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models
from tests.hub.serving.test_packed import adapted, quantised, widened

pytestmark = pytest.mark.slow
ASKED: dict[str, Any] = {"prompt": "of the sea", "max_tokens": 6, "temperature": 0, "logprobs": 3}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[openai.OpenAI, Path]]:
    folder = tmp_path_factory.mktemp("packed")
    base = quantised("nf4", folder).rename(folder / "base")
    adapted(base, folder / "lora")  # trained on the packed weights, as QLoRA is
    with running(folder / "data", engine="embedded", device="cpu", threads="1") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        push(api, base)
        push(api, folder / "lora")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0) as client:
            yield client, folder


@torch.no_grad()
def likeliest(model: Any) -> tuple[str, float]:
    """The first token of the answer, and its log probability."""
    ids = models.tokenizer()(ASKED["prompt"], return_tensors="pt")["input_ids"]
    value, token = model(ids).logits[0, -1].float().log_softmax(-1).max(-1)
    return str(models.tokenizer().decode([int(token)])), float(value)


def test_a_packed_base_and_a_lora_on_it_are_served_as_they_are(served: tuple[openai.OpenAI, Path]) -> None:
    client, folder = served
    wide = transformers.AutoModelForCausalLM.from_pretrained(widened(folder / "base", folder / "wide"))
    expected = {"admin/base": likeliest(wide)}
    tuned = peft.PeftModel.from_pretrained(wide, str(folder / "lora"))
    expected["admin/base + admin/lora"] = expected["admin/lora"] = likeliest(tuned)
    assert expected["admin/base"][0] != expected["admin/lora"][0]
    prints = set()
    for name, wanted in expected.items():
        found = client.completions.create(model=name, **ASKED)
        logprobs = found.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.tokens[0] == wanted[0]
        assert logprobs.token_logprobs[0] == pytest.approx(wanted[1], abs=0.1)  # bfloat16
        prints.add(found.system_fingerprint)
    assert len(prints) == 2
    listed = {one.id: one.to_dict()["adapterhub"] for one in client.models.list()}
    assert {listed[name]["state"] for name in ("admin/base", "admin/lora")} == {"resident"}  # type: ignore[index]
