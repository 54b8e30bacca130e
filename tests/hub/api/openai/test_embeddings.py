"""POST /v1/embeddings by the unmodified openai client, against the mean of transformers' own hidden states."""

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers
from huggingface_hub import HfApi

from tests.clients.server import Server
from tests.hub.serving import models

TEXTS = ["hello", "you there"]


@pytest.fixture(scope="module")
def base(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The base as transformers loads what is on the hub."""
    folder = HfApi(endpoint=serving.url, token=serving.token).snapshot_download(
        "admin/base", local_dir=tmp_path_factory.mktemp("base")
    )
    return transformers.AutoModel.from_pretrained(Path(folder))


def mean_of(model: Any, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    with torch.no_grad():
        found: np.ndarray[Any, np.dtype[np.float64]] = (
            model(torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy()
        )
    return found


def test_vectors_are_the_means_of_hidden_states(client: openai.OpenAI, base: Any) -> None:
    found = client.embeddings.create(model="admin/base", input=TEXTS)  # as base64, as the client asks by itself
    tokens = [models.tokenizer()(text)["input_ids"] for text in TEXTS]
    assert (found.object, found.model, [one.index for one in found.data]) == ("list", "admin/base", [0, 1])
    for one, ids in zip(found.data, tokens, strict=True):
        np.testing.assert_allclose(one.embedding, mean_of(base, ids), rtol=1e-5, atol=1e-6)
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))


def test_a_text_token_ids_and_both_formats_are_one(client: openai.OpenAI) -> None:
    ids = models.tokenizer()("hello")["input_ids"]
    asked: list[Any] = ["hello", ["hello"], ids, [ids]]
    for encoding in ("float", "base64"):
        found: list[Any] = [
            client.embeddings.create(model="admin/base", input=one, encoding_format=encoding).data[0].embedding
            for one in asked
        ]
        raw = [np.frombuffer(base64.b64decode(one), "<f4").tolist() if isinstance(one, str) else one for one in found]
        assert all(np.allclose(one, raw[0], rtol=1e-6) for one in raw)


def test_a_variant_has_vectors_of_its_own_and_says_so(client: openai.OpenAI, http: httpx.Client) -> None:
    asked = {"model": "admin/base + 0.5*admin/one", "input": "hello"}
    of_variant, of_base = (
        http.post("/v1/embeddings", json=asked | more).json() for more in ({}, {"model": "admin/base"})
    )
    assert of_variant["system_fingerprint"] != of_base["system_fingerprint"]
    assert not np.allclose(of_variant["data"][0]["embedding"], of_base["data"][0]["embedding"])
    cut = client.embeddings.create(model="admin/base", input="hello", dimensions=4).data[0].embedding
    np.testing.assert_allclose(cut, of_base["data"][0]["embedding"][:4], rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "without any token"),
        ({"input": [[300]]}, "input[0]: token ids from 0 to 257"),
        ({"input": "x" * 300}, "input[0]: 300 tokens; this model reads 256"),
        ({"input": "x", "dimensions": 99}, "dimensions: 99; this model's vectors have 32 numbers"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "prompt": "x"}, "prompt"),
    ],
)
def test_what_has_no_vector_is_refused_in_openai_s_words(http: httpx.Client, asked: dict[str, Any], told: str) -> None:
    answer = http.post("/v1/embeddings", json={"model": "admin/base", **asked})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
