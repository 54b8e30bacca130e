"""Models composed while they decode, asked for by their expression, by the unmodified openai client."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import peft
import pytest
import torch
import transformers
from huggingface_hub import HfApi

from tests.clients.server import Server
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models
from tests.merging.decoding.formulas import FORMULAS

pytestmark = pytest.mark.slow

PROXY = "proxy(admin/larger; admin/base + admin/one, anti=admin/base)"
ASKED: dict[str, Any] = {"prompt": "hello", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def folders(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model and one of another vocabulary, pushed; the others are those of the server."""
    root = tmp_path_factory.mktemp("composed")
    models.llama(root / "larger", seed=7, width=64)
    models.llama(root / "stranger", seed=8)
    tokens = models.tokenizer()
    tokens.add_tokens(["<more>"])
    tokens.save_pretrained(root / "stranger")
    api = HfApi(endpoint=serving.url, token=serving.token)
    for path in sorted(root.iterdir()):
        push(api, path)
    models.llama(root / "base")
    models.lora(root / "base", root / "one", seed=1)
    return root


def greedy(folders: Path, operator: str, members: list[Any], weights: list[float], **told: Any) -> str:
    """The likeliest text by the paper's formula, each member reading all of it at every token."""
    tokenizer = models.tokenizer()
    ids = list(tokenizer("hello")["input_ids"])
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 12:
            rows = [one(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy() for one in members]
            following = int(FORMULAS[operator](np.stack(rows), weights, **told).argmax())
            if following == models.END:
                break
            ids.append(following)
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.fixture(scope="module")
def members(folders: Path) -> list[Any]:
    """Of the proxy: larger, base, and base with the LoRA as peft merges it."""
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    tuned = peft.PeftModel.from_pretrained(load(folders / "base"), str(folders / "one")).merge_and_unload()
    return [load(folders / "larger"), load(folders / "base"), tuned]


def test_an_expression_is_answered_as_the_paper_says_whole_and_streamed(
    client: openai.OpenAI, folders: Path, members: list[Any]
) -> None:
    before = client.completions.create(model="admin/base", **ASKED).choices[0].text
    expected = greedy(folders, "proxy", members, [1.0])
    answer = client.completions.create(model=PROXY, **ASKED)
    assert answer.choices[0].text == expected
    streamed = client.completions.create(model=PROXY, stream=True, **ASKED)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == expected
    # a patch alone stands on its base, as in any expression
    steered = client.completions.create(model="proxy(admin/larger; 0.5*admin/one, anti=admin/base, alpha=2)", **ASKED)
    assert steered.choices[0].text == expected
    contrasted = client.completions.create(model="contrast(admin/larger; admin/base)", **ASKED).choices[0].text
    assert contrasted == greedy(folders, "contrast", members[:2], [1.0])
    assert client.completions.create(model="admin/base", **ASKED).choices[0].text == before


def test_chats_go_through_the_first_members_template_and_tell_the_composed_logprobs(
    client: openai.OpenAI, folders: Path
) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {"messages": messages, "max_tokens": 5, "temperature": 0, "logprobs": True}
    found = client.chat.completions.create(model="ensemble(admin/larger, admin/base)", top_logprobs=2, **asked)
    told = found.choices[0].logprobs
    assert told is not None
    assert told.content
    assert all(one.logprob == one.top_logprobs[0].logprob for one in told.content)


def test_a_composition_has_a_digest_and_a_name(client: openai.OpenAI, http: httpx.Client, folders: Path) -> None:
    raw = client.completions.with_raw_response.create(model=PROXY, **ASKED)
    vid, text = raw.headers["X-Adapterhub-Variant"], raw.parse().choices[0].text
    again = client.completions.with_raw_response.create(model="vid:" + vid.replace(":", "-"), **ASKED)
    assert (again.headers["X-Adapterhub-Variant"], again.parse().choices[0].text) == (vid, text)
    saved = http.post("/api/recipes", json={"name": "admin/steered", "expression": PROXY})
    assert saved.status_code < 300, saved.text
    assert saved.json()["digest"] == vid
    named = client.completions.create(model="recipe/admin/steered", **ASKED)
    assert named.choices[0].text == text


def test_what_has_no_merged_result_is_not_merged_or_explained(http: httpx.Client, folders: Path) -> None:
    for path in ("/api/merges", "/api/recipes/explain"):
        refused = http.post(path, json={"expression": PROXY})
        assert refused.status_code == 422, refused.text
        assert "composes models while they decode and has no merged result; serve it" in refused.text


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("ensemble(admin/base, admin/stranger)", "different vocabularies.*258 is '<more>' in admin/stranger"),
        ("proxy(admin/larger; admin/base + admin/one)", "anti is missing"),
        ("ensemble(admin/base, admin/bert)", "does not generate text"),
        ("ensemble(admin/base, ensemble(admin/larger))", "stands alone"),
        ("ensemble(" + ", ".join(["admin/base"] * 17) + ")", "more than 16 models"),
    ],
)
def test_what_cannot_be_composed_is_a_400_with_the_reason(
    model: str, told: str, client: openai.OpenAI, folders: Path
) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        client.completions.create(model=model, **ASKED)


def test_embeddings_of_a_composition_are_refused(client: openai.OpenAI, folders: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="answers with text alone"):
        client.embeddings.create(model=PROXY, input="x")
