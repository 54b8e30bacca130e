"""The unmodified openai client against the running server."""

import asyncio
import math
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.clients.server import Server
from tests.hub.serving.models import END

EXPRESSION = "admin/base + 0.7*admin/one + 0.5*admin/two"


def completed(client: openai.OpenAI, model: str, **options: Any) -> str:
    options = {"max_tokens": 16, "temperature": 0, **options}
    return str(client.completions.create(model=model, prompt="hello", **options).choices[0].text)


def test_models_lists_bases_and_patches_with_their_parents(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert {"admin/base", "admin/one", "admin/vit"} <= set(found)
    assert client.models.retrieve("admin/one").to_dict()["parent"] == "admin/base"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("admin/none")


def test_a_patch_alone_and_with_its_base_and_as_an_expression_are_one(client: openai.OpenAI) -> None:
    texts = {completed(client, model) for model in ("admin/one", "admin/base:admin/one", "admin/base + admin/one")}
    assert len(texts) == 1
    assert texts != {completed(client, "admin/base")}


def test_a_completion_has_every_field_that_the_client_reads(client: openai.OpenAI) -> None:
    found = client.completions.create(model=EXPRESSION, prompt=["hello", "you"], max_tokens=4, n=2, logprobs=2, seed=1)
    assert found.object == "text_completion"
    assert found.model == EXPRESSION
    assert found.system_fingerprint
    assert found.system_fingerprint.startswith("ah-")
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage
    assert found.usage.prompt_tokens == 5 + 3
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    logprobs = found.choices[0].logprobs
    assert logprobs
    assert logprobs.tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset or ())


def test_a_text_is_scored_without_generating(client: openai.OpenAI) -> None:
    found = client.completions.create(model="admin/base", prompt="hello", max_tokens=0, echo=True, logprobs=0)
    assert found.choices[0].text == "hello"
    logprobs = found.choices[0].logprobs
    assert logprobs
    told: list[float | None] = list(logprobs.token_logprobs or [])
    assert told[0] is None
    assert len(told) == 5
    assert all(one is not None and math.exp(one) <= 1 for one in told[1:])


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = completed(client, "admin/one", max_tokens=40)
    chunks = list(
        client.completions.create(
            model="admin/one",
            prompt="hello",
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].usage
    assert chunks[-1].usage.prompt_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_chat_streams_a_role_pieces_a_reason_and_done(client: openai.OpenAI, http: httpx.Client) -> None:
    asked = {
        "model": "admin/one",
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
        "max_tokens": 30,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    reply = http.post("/v1/chat/completions", json={**asked, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert '"role": "assistant"' in events[0]
    streamed = client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.choices[0].message.content
    assert whole.usage.prompt_tokens == len("a\n\nb")
    scored = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)  # type: ignore[call-overload]
    assert len(scored.choices[0].logprobs.content[0].top_logprobs) == 3


@pytest.mark.parametrize(
    ("model", "error", "code"),
    [
        ("admin/bass", openai.NotFoundError, "model_not_found"),
        ("admin/base + admin/foreign", openai.BadRequestError, "incompatible_patch"),
        ("admin/base + ", openai.BadRequestError, "expression_error"),
        ("admin/bert", openai.BadRequestError, "invalid_request"),
    ],
)
def test_a_model_that_cannot_be_served_is_named(
    client: openai.OpenAI, model: str, error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as caught:
        completed(client, model)
    assert caught.value.code == code
    assert caught.value.response.headers["X-Error-Code"]


def test_an_unknown_name_is_answered_with_a_near_one(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean admin/base"):
        completed(client, "admin/bass")


def test_a_private_patch_is_unknown_to_others_also_inside_an_expression(
    serving: Server, client: openai.OpenAI, outsider: str
) -> None:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=outsider, max_retries=0) as other:
        assert completed(client, EXPRESSION)
        for model in ("admin/two", EXPRESSION):
            with pytest.raises(openai.NotFoundError):
                completed(other, model)
        assert completed(other, "admin/one")
        assert "admin/two" not in {model.id for model in other.models.list()}


def test_without_a_token_repositories_are_served_and_merges_are_not(serving: Server) -> None:
    with httpx.Client(base_url=serving.url, timeout=60) as anonymous:
        asked = {"prompt": "a", "max_tokens": 1}
        assert anonymous.post("/v1/completions", json={"model": "admin/one", **asked}).status_code == 200
        refused = anonymous.post("/v1/completions", json={"model": "admin/base + 2*admin/one", **asked})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "wish",
    [{"temperature": 3}, {"tools": [{"type": "function"}]}, {"max_tokens": -1}, {"stop": ["a"] * 5}, {"n": 99}],
)
def test_wishes_that_are_not_granted_are_refused(http: httpx.Client, wish: dict[str, Any]) -> None:
    reply = http.post("/v1/chat/completions", json={"model": "admin/base", "messages": [{"role": "user"}], **wish})
    assert reply.status_code == 400
    assert next(iter(wish)) in reply.json()["error"]["message"]


def test_variants_asked_at_once_answer_as_alone(serving: Server, client: openai.OpenAI) -> None:
    models = ["admin/base", "admin/one", EXPRESSION]
    alone = [completed(client, model, max_tokens=40) for model in models]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key=serving.token) as many:
            replies = await asyncio.gather(
                *(
                    many.completions.create(model=model, prompt="hello", max_tokens=40, temperature=0)
                    for model in models * 3
                )
            )
        return [reply.choices[0].text for reply in replies]

    assert asyncio.run(together()) == alone * 3
    assert len(set(alone)) == 3


def test_killing_the_engine_is_a_clear_503_and_the_next_request_works(serving: Server, client: openai.OpenAI) -> None:
    asked = {"n": 8, "max_tokens": 240, "logit_bias": {str(END): -100}}  # so much that it cannot be over before
    stream = client.completions.create(model="admin/base", prompt="a", stream=True, **asked)  # type: ignore[call-overload]
    next(iter(stream))
    os.kill(engine_pid(serving), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="engine stopped"):
        list(stream)
    with httpx.Client(base_url=serving.url) as web:
        assert web.get("/api/models").status_code == 200
    assert completed(client, "admin/base")


def engine_pid(server: Server) -> int:
    """The server's child that runs the engine."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if b"engines.embedded" in Path(f"/proc/{pid}/cmdline").read_bytes())
