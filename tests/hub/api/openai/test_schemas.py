"""Answers that follow a JSON schema, by the unmodified openai client, of a model whose own answers are noise."""

import json
from typing import Any

import openai
import pytest

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["mood", "score", "tags"],
    "additionalProperties": False,
}
MESSAGES: Any = [{"role": "user", "content": "hello"}]


def of_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def check(text: str) -> None:
    found = json.loads(text)
    assert found.keys() == {"mood", "score", "tags"}
    assert found["mood"] in ("good", "bad")
    assert 0 <= found["score"] <= 99
    assert 1 <= len(found["tags"]) <= 3
    assert set(found["tags"]) <= {"a", "b"}


@pytest.mark.parametrize("model", ["admin/base", "admin/base + 0.8*admin/one"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_answer_follows_the_schema(client: openai.OpenAI, model: str, temperature: float) -> None:
    found = client.chat.completions.create(
        model=model, messages=MESSAGES, n=4, temperature=temperature, seed=7, response_format=of_schema(SCHEMA)
    )
    for choice in found.choices:
        check(choice.message.content or "")
        assert choice.finish_reason == "stop"
    if temperature == 2.0:
        assert len({choice.message.content for choice in found.choices}) > 1


def test_a_stream_follows_it_too(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="admin/base", messages=MESSAGES, temperature=0, stream=True, response_format=of_schema(SCHEMA)
    )
    check("".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices))


def test_what_is_cut_off_says_so(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="admin/base", messages=MESSAGES, max_tokens=5, temperature=0, response_format=of_schema(SCHEMA)
    )
    assert found.choices[0].finish_reason == "length"
    assert (found.choices[0].message.content or "").startswith('{"mo')


def test_an_object_of_any_kind(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="admin/base", messages=MESSAGES, temperature=0, max_tokens=8, response_format={"type": "json_object"}
    )
    assert (found.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (of_schema({"type": "zork"}), "zork"),
        (of_schema({"$ref": "http://example.com/else"}), "JSON schema is refused"),
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "xml"}, "response_format"),
    ],
)
def test_what_is_no_schema_is_refused(client: openai.OpenAI, form: Any, told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        client.chat.completions.create(model="admin/base", messages=MESSAGES, response_format=form)
