"""huggingface_hub's InferenceClient, unmodified, at the URLs of models."""

import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError
from PIL import Image

from tests.clients.server import Server


def inference(server: Server, model: str) -> Any:
    """The client, of any type: its own says less than it takes."""
    return InferenceClient(model=f"{server.url}/models/{model}", token=server.token)


def png() -> bytes:
    file = BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    return file.getvalue()


def test_texts_are_classified(serving: Server) -> None:
    found = inference(serving, "admin/bert").text_classification("fine", top_k=2)
    assert len(found) == 2
    assert {one.label for one in found} <= {"yes", "no", "maybe"}


@pytest.mark.parametrize("top_k", [None, 3])
def test_images_are_classified_sent_raw_or_with_parameters(serving: Server, top_k: int | None) -> None:
    found = inference(serving, "admin/vit").image_classification(png(), top_k=top_k)
    assert len(found) == (top_k or 5)
    assert found[0].score >= found[-1].score


def test_features_are_the_vectors_of_tokens_of_a_variant_too(serving: Server) -> None:
    of_base = inference(serving, "admin/base").feature_extraction("hello")
    of_patch = inference(serving, "admin/base:admin/one").feature_extraction("hello")
    assert of_base.shape == of_patch.shape == (1, 5, 32)
    assert not np.allclose(of_base, of_patch)


def test_a_chat_at_a_models_url_is_answered_by_that_model(serving: Server) -> None:
    found = InferenceClient(base_url=f"{serving.url}/models/admin/one", token=serving.token).chat_completion(
        [{"role": "user", "content": "hello"}], max_tokens=3
    )
    assert found.model == "admin/one"
    assert found.usage.completion_tokens <= 3


SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def test_text_is_generated_at_a_models_url(serving: Server, client: openai.OpenAI) -> None:
    ask = inference(serving, "admin/base:admin/one").text_generation
    expected = (
        client.completions.create(model="admin/one", prompt="hello", max_tokens=12, temperature=0).choices[0].text
    )
    assert ask("hello", max_new_tokens=12) == expected
    assert "".join(ask("hello", max_new_tokens=12, stream=True)) == expected
    told = ask("hello", max_new_tokens=12, details=True)
    assert told.generated_text == expected
    assert told.details.generated_tokens == len(told.details.tokens) == 12
    pieces = list(ask("hello", max_new_tokens=12, details=True, stream=True))
    assert pieces[-1].generated_text == expected
    assert ask("hello", max_new_tokens=12, return_full_text=True, stop=["zzz"]) == "hello" + expected
    asked = {"model": "admin/one", "prompt": "hello", "max_tokens": 60, "temperature": 0, "frequency_penalty": 1.5}
    penalised = client.completions.create(**asked).choices[0].text  # type: ignore[call-overload]
    assert ask("hello", max_new_tokens=60, frequency_penalty=1.5) == penalised != ask("hello", max_new_tokens=60)
    assert json.loads(ask("hello", grammar={"type": "json", "value": SCHEMA}))["mood"] in ("good", "bad")


def test_an_adapter_is_chosen_as_of_a_tgi(serving: Server) -> None:
    ask = inference(serving, "admin/base").text_generation
    of_url = inference(serving, "admin/base:admin/one").text_generation
    assert ask("hello", adapter_id="admin/one", max_new_tokens=9) == of_url("hello", max_new_tokens=9)
    assert ask("hello", max_new_tokens=9) != of_url("hello", max_new_tokens=9)


def test_wishes_for_text_that_are_not_computed_are_refused(serving: Server) -> None:
    ask = inference(serving, "admin/base").text_generation
    for name, value, told in (("top_n_tokens", 3, "top_n_tokens"), ("temperature", -1, "temperature")):
        with pytest.raises(BadRequestError, match=told):
            ask("hello", **{name: value})
    with pytest.raises(BadRequestError, match="grammar"):
        ask("hello", grammar={"type": "regex", "value": "a*"})
    with pytest.raises(BadRequestError, match="does not generate"):
        inference(serving, "admin/bert/pipeline/text-generation").text_generation("hello")


def test_a_task_by_its_name_generates_too(http: httpx.Client) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 4}}
    named = http.post("/models/admin/base/pipeline/text-generation", json=body).json()
    assert named == http.post("/models/admin/base", json={**body, "stream": False}).json()


def test_a_chat_of_the_client_follows_a_schema_in_tgis_wording_too(serving: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
    messages = [{"role": "user", "content": "hello"}]
    at_v1: Any = InferenceClient(base_url=f"{serving.url}/v1", token=serving.token)
    for found in (
        at_v1.chat_completion(messages, model="admin/base", response_format=form),
        inference(serving, "admin/base").chat_completion(messages, response_format=form),
        at_v1.chat_completion(messages, model="admin/base", response_format={"type": "json_object", "value": SCHEMA}),
    ):
        assert json.loads(found.choices[0].message.content).keys() == {"mood"}


def test_what_is_no_input_is_refused_in_words(http: httpx.Client) -> None:
    for sent in (b"{", b"{}", b'{"inputs": 7}', b'{"inputs": []}', b'{"inputs": "a", "parameters": {"top_k": -1}}'):
        reply = http.post("/models/admin/bert", content=sent)
        assert reply.status_code == 400, sent
        assert reply.json()["error"]["message"]
    assert http.post("/models/admin/vit", content=b"no image").status_code == 400
    assert http.post("/models/admin/base/pipeline/text-classification", json={"inputs": "a"}).status_code == 400
