"""POST /generate as LoRAX's clients ask it, and what merged adapters mean, against the same as expressions."""

import json
from typing import Any

import httpx
import pytest

MERGED = {"ids": ["admin/one", "admin/two"], "weights": [0.7, -0.3]}


def generated(http: httpx.Client, **parameters: Any) -> dict[str, Any]:
    answer = http.post("/generate", json={"inputs": "hello", "parameters": {"max_new_tokens": 12, **parameters}})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def completed(http: httpx.Client, model: str) -> str:
    asked = {"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0}
    return str(http.post("/v1/completions", json=asked).json()["choices"][0]["text"])


@pytest.mark.parametrize(
    ("parameters", "expression"),
    [
        ({"adapter_id": "admin/one"}, "admin/base + admin/one"),
        ({"adapter_id": "admin/one", "model_id": "admin/base", "adapter_source": "hub"}, "admin/base + admin/one"),
        ({"model_id": "admin/base"}, "admin/base"),
        ({"merged_adapters": MERGED}, "admin/base + 0.7*admin/one - 0.3*admin/two"),
        ({"adapters": {"ids": ["admin/one", "admin/two"]}}, "admin/base + admin/one + admin/two"),
        (
            {"merged_adapters": {**MERGED, "merge_strategy": "ties", "density": 0.4, "majority_sign_method": "total"}},
            "ties(admin/base; 0.7*admin/one, -0.3*admin/two, density=0.4, elect=unweighted, normalize=count)",
        ),
        (
            {"merged_adapters": {**MERGED, "merge_strategy": "dare_linear", "density": 0.5}},
            "dare_linear(admin/base; 0.7*admin/one, -0.3*admin/two, density=0.5)",
        ),
    ],
)
def test_adapters_are_what_their_expression_says(
    http: httpx.Client, parameters: dict[str, Any], expression: str
) -> None:
    assert generated(http, **parameters)["generated_text"] == completed(http, expression)


def test_details_have_every_token_with_its_number(http: httpx.Client) -> None:
    found = generated(http, adapter_id="admin/one", details=True, decoder_input_details=True, seed=3)
    details = found["details"]
    assert details["finish_reason"] in ("length", "eos_token")
    assert (details["prompt_tokens"], details["seed"]) == (5, 3)
    assert [one["text"] for one in details["prefill"]] == list("hello")
    assert [one["id"] for one in details["prefill"]] == list(b"hello") or details["prefill"][0]["logprob"] is None
    assert details["generated_tokens"] == len(details["tokens"])
    assert all(one["id"] >= 0 and one["logprob"] <= 0 for one in details["tokens"])
    assert generated(http, adapter_id="admin/one", return_full_text=True)["generated_text"].startswith("hello")
    first = found["generated_text"][3]
    stopped = generated(http, adapter_id="admin/one", details=True, stop=[first])
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert first not in stopped["generated_text"]


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
def test_a_stream_is_the_same_token_by_token(http: httpx.Client, path: str) -> None:
    asked = {"inputs": "hello", "parameters": {"adapter_id": "admin/one", "max_new_tokens": 12}, "stream": True}
    with http.stream("POST", path, json=asked) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data:")) for line in stream.iter_lines() if line]
    whole = generated(http, adapter_id="admin/one", details=True)
    assert [one["token"] for one in events] == whole["details"]["tokens"]
    assert [one["generated_text"] for one in events] == [None] * (len(events) - 1) + [whole["generated_text"]]
    assert events[-1]["details"]["generated_tokens"] == len(events)


@pytest.mark.parametrize(
    ("parameters", "status", "told"),
    [
        ({}, 400, "say what answers"),
        ({"adapter_id": "admin/one", "merged_adapters": MERGED}, 400, "at most one"),
        ({"adapter_id": "admin/one", "adapter_source": "s3"}, 400, "from this hub alone"),
        ({"adapter_id": "admin/one", "typical_p": 0.5}, 400, "typical_p: not supported"),
        ({"adapter_id": "admin/one", "watermark": True}, 400, "watermark: not supported"),
        ({"merged_adapters": {**MERGED, "weights": [1.0]}}, 400, "2 ids and 1 weights"),
        ({"merged_adapters": {**MERGED, "merge_strategy": "ties", "density": 0.0}}, 422, "density is 0.0"),
        (
            {"merged_adapters": {**MERGED, "merge_strategy": "ties", "majority_sign_method": "frequency"}},
            400,
            "peft_ties",
        ),
        ({"adapter_id": "admin/none"}, 404, "admin/none"),
        ({"adapter_id": "admin/foreign", "model_id": "admin/base"}, 422, "made for another architecture"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    http: httpx.Client, parameters: dict[str, Any], status: int, told: str
) -> None:
    answer = http.post("/generate", json={"inputs": "hello", "parameters": parameters})
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text


def test_drawn_answers_follow_the_seed(http: httpx.Client) -> None:
    asked = {"adapter_id": "admin/one", "do_sample": True, "temperature": 1.5, "top_k": 40, "repetition_penalty": 1.2}
    one, same, other = (generated(http, **asked, seed=seed)["generated_text"] for seed in (1, 1, 2))
    assert one == same != other
