"""huggingface_hub's InferenceClient, unmodified, at the URLs of models."""

from io import BytesIO

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from tests.clients.server import Server


def inference(server: Server, model: str) -> InferenceClient:
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


def test_what_is_no_input_is_refused_in_words(http: httpx.Client) -> None:
    for sent in (b"{", b"{}", b'{"inputs": 7}', b'{"inputs": []}', b'{"inputs": "a", "parameters": {"top_k": -1}}'):
        reply = http.post("/models/admin/bert", content=sent)
        assert reply.status_code == 400, sent
        assert reply.json()["error"]["message"]
    assert http.post("/models/admin/vit", content=b"no image").status_code == 400
    assert http.post("/models/admin/base/pipeline/text-classification", json={"inputs": "a"}).status_code == 400
