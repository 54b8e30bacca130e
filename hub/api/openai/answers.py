"""Takes an engine's events and words them as OpenAI does: gathered into one answer, or one by one as they come."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from time import time
from typing import Any

import structlog
from starlette.responses import StreamingResponse

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api.errors import openai_error
from adapterhub.hub.db.tables import new_id
from adapterhub.hub.serving.protocol import (
    Called,
    Delta,
    Engine,
    Event,
    Finished,
    Generate,
    Started,
    TokenLogprob,
    VariantSpec,
)

_log = structlog.get_logger()

Json = dict[str, Any]


@dataclass
class ToolCall:
    """A call of a tool, under an id of its own."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"call_{new_id()}")

    def as_json(self) -> Json:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass
class Gathered:
    """One complete answer."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str = "stop"
    calls: list[ToolCall] = field(default_factory=list)

    def take(self, piece: Called) -> None:
        if piece.number == len(self.calls):
            self.calls.append(ToolCall(piece.name))
        self.calls[piece.number].arguments += piece.arguments

    def message(self) -> Json:
        """As a chat's answer shows it: beside calls, white space alone is no content."""
        if not self.calls:
            return {"role": "assistant", "content": self.text, "refusal": None}
        calls = [call.as_json() for call in self.calls]
        return {"role": "assistant", "content": self.text.strip() or None, "refusal": None, "tool_calls": calls}


@dataclass
class Usage:
    """Numbers of tokens so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def count(self, event: Event) -> None:
        if isinstance(event, Started):
            self.prompt_tokens += event.prompt_tokens
        elif isinstance(event, Finished):
            self.prompt_tokens += event.prompt_tokens
            self.completion_tokens += event.completion_tokens

    def as_json(self) -> Json:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


def envelope(prefix: str, kind: str, model: str) -> Json:
    """What every reply and every chunk of it begins with. model: as the request spelled it."""
    return {"id": f"{prefix}-{new_id()}", "object": kind, "created": int(time()), "model": model}


async def events_of(engine: Engine, spec: VariantSpec, asked: Iterable[Generate]) -> AsyncGenerator[Event, None]:
    """The events of several requests one after the other; answers are numbered through."""
    offset = 0
    for request in asked:
        events = engine.generate(spec, request)
        assert isinstance(events, AsyncGenerator)
        async with aclosing(events):
            async for event in events:
                yield event if isinstance(event, Started) else replace(event, index=event.index + offset)
        offset += request.n


async def gathered(events: AsyncIterator[Event], count: int) -> tuple[list[Gathered], Usage, str]:
    """All answers, their usage, and the execution id."""
    answers = [Gathered() for _ in range(count)]
    usage, execution_id = Usage(), ""
    async for event in events:
        usage.count(event)
        match event:
            case Started():
                execution_id = event.execution_id
            case Delta():
                answers[event.index].text += event.text
                answers[event.index].logprobs += event.logprobs
            case Called():
                answers[event.index].take(event)
            case Finished():
                answers[event.index].reason = reason_of(event, has_called=bool(answers[event.index].calls))
    return answers, usage, execution_id


async def one_call_each(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The events without any call but the first of each answer."""
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Called) or not event.number:
                yield event


def reason_of(event: Finished, *, has_called: bool) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "tool_calls" if has_called and event.reason == "stop" else event.reason


class EventStream(StreamingResponse):
    """Chunks as server-sent events, "[DONE]" at the end; an error after the start is an event of its own."""

    def __init__(self, chunks: AsyncIterator[Json], headers: Mapping[str, str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(_told(chunks), headers=headers, media_type="text/event-stream")


async def _told(chunks: AsyncIterator[Json]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except AdapterHubError as error:
        _log.warning("stream.broken", error=str(error))
        yield f"data: {json.dumps(openai_error(error))}\n\n"
        return
    yield "data: [DONE]\n\n"


def utf8(text: str) -> list[int]:
    """The bytes of a token's text, as OpenAI lists them."""
    return list(text.encode("utf-8", "replace"))


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json:
    """Log probabilities as a chat's answer shows them."""

    def shown(text: str, logprob: float | None) -> Json:
        return {"token": text, "logprob": logprob, "bytes": utf8(text)}

    content = [{**shown(one.text, one.logprob), "top_logprobs": [shown(*top) for top in one.top]} for one in tokens]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int = 0, *, by_id: bool = False) -> Json:
    """Log probabilities as a completion shows them; offset: characters of the answer before the first token.

    by_id: tokens as "token_id:<number>", as vLLM has them: texts of several may be the same.
    """
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.text)

    def top(one: TokenLogprob) -> dict[str, float]:
        names = map(_by_id, one.top_ids) if by_id else (text for text, _ in one.top)
        return dict(zip(names, (value for _, value in one.top), strict=True))

    return {
        "tokens": [_by_id(one.id) if by_id else one.text for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [top(one) if one.logprob is not None else None for one in tokens],
        "text_offset": offsets,
    }


def _by_id(token: int) -> str:
    return f"token_id:{token}"
