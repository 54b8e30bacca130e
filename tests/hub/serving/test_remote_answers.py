"""What is sent to a server of another make, and what is read from its chunks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, Overloaded, TooLarge
from adapterhub.hub.serving import remote_answers
from adapterhub.hub.serving.protocol import Delta, Finished, Generate, Sampling, Started, Task
from adapterhub.hub.serving.remote import Sglang, Vllm, message_of, refused


def read(request: Generate, chunks: list[dict[str, Any]]) -> list[Any]:
    async def told() -> AsyncIterator[dict[str, Any]]:
        for chunk in chunks:
            yield chunk

    async def gathered() -> list[Any]:
        return [event async for event in remote_answers.events(told(), request, "ah-1", 2.0)]

    return asyncio.run(gathered())


def chunk(text: str, index: int = 0, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": reason}], **more}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def test_a_server_that_counts_in_every_chunk_is_believed_at_once() -> None:
    found = read(
        Generate("x"),
        [chunk("a", usage=usage(3, 1)), chunk("b", reason="length", usage=usage(3, 2)), {"choices": []}],
    )
    assert found == [Started(3, "ah-1", 2.0), Delta(0, "a"), Delta(0, "b"), Finished(0, "length", 2)]


def test_a_server_that_counts_at_the_end_has_its_numbers_told_there() -> None:
    found = read(
        Generate("x", n=2),
        [
            chunk("a"),
            chunk("b", 1, "stop"),
            chunk("", 0, "length"),
            {"choices": [], "usage": usage(3, 7)},
        ],
    )
    assert found[0] == Started(0, "ah-1", 2.0)
    ends = [event for event in found if isinstance(event, Finished)]
    assert [one.index for one in ends] == [0, 1]
    assert sum(one.prompt_tokens for one in ends) == 3
    assert sum(one.completion_tokens for one in ends) == 7


@pytest.mark.parametrize(
    "chunks",
    [[], [chunk("a")], [chunk("a", reason="abort")], [chunk("a", 0, "stop"), chunk("b", 1)]],
)
def test_an_answer_that_is_not_whole_is_no_answer(chunks: list[dict[str, Any]]) -> None:
    with pytest.raises(EngineUnavailable):
        read(Generate("x", n=2), chunks)


@pytest.mark.parametrize(("field", "value", "by_text"), [("stop_reason", "\n", True), ("matched_stop", 2, False)])
def test_what_ended_an_answer_is_told(field: str, value: Any, by_text: bool) -> None:
    [*_, end] = read(Generate("x"), [{"choices": [{"index": 0, "text": "a", "finish_reason": "stop", field: value}]}])
    assert end == Finished(0, "stop", 0, by_text)


def test_every_way_of_sampling_is_said() -> None:
    sampling = Sampling(temperature=0.5, top_k=4, seed=7, logit_bias={3: -1.0})
    request = Generate("x", max_tokens=5, stop=("a",), sampling=sampling, logprobs=2, json_schema={"type": "object"})
    body = remote_answers.body(request, {"model": "m"})
    assert body["logit_bias"] == {"3": -1.0}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert {key: body[key] for key in ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "logprobs")} == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 4,
        "repetition_penalty": 1.0,
        "seed": 7,
        "logprobs": 2,
    }
    plain = remote_answers.body(Generate(messages=[{"role": "user", "content": "x"}]), {"model": "m"})
    assert plain["top_k"] == -1
    assert not plain.keys() & {"seed", "max_tokens", "logprobs", "prompt", "response_format", "logit_bias"}


def test_a_task_that_is_no_embedding_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="embedded"):
        remote_answers.embedding_body(Task("feature-extraction", "x"), {})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (422, InvalidRequest),
        (401, EngineUnavailable),
        (302, EngineUnavailable),
        (413, TooLarge),
        (429, Overloaded),
        (500, EngineUnavailable),
        (503, Overloaded),
    ],
)
def test_refusals_are_the_services_own(status: int, kind: type[Exception]) -> None:
    assert type(refused(status, "why")) is kind


def test_each_servers_words_for_a_lost_adapter_are_known() -> None:
    remote: Any = None
    said = message_of({"error": {"message": "The model `sha256-1` does not exist.", "code": 404}})
    assert Vllm(remote).is_lost(404, said, "sha256-1")
    assert not Vllm(remote).is_lost(404, "Not Found", "sha256-1")
    assert not Vllm(remote).is_lost(404, said, None)
    said = message_of({"message": "The following requested LoRA adapters are not loaded: sha256-1\nLoaded: []"})
    assert Sglang(remote).is_lost(400, said, "sha256-1")
    assert not Sglang(remote).is_lost(400, "too long", "sha256-1")
