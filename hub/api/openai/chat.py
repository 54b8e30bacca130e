"""POST /v1/chat/completions. Source: platform.openai.com/docs/api-reference/chat, as the openai client reads it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai import answers
from adapterhub.hub.api.openai.requests import EngineDep, begun, named, unless_gone, variant
from adapterhub.hub.api.openai.schemas import ChatRequest
from adapterhub.hub.serving.protocol import Called, Delta, Event, Finished, Started

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions")
async def create_chat_completion(
    body: ChatRequest, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """Answer a conversation, in one piece or, with `stream`, as server-sent events.

    A model without a chat template continues the text of the messages, joined by blank lines. `tools` need one that
    tells of them; with `tool_choice` "required" or a tool's name the answer is a call, its arguments by the schema.
    """
    spec = await variant(hub, caller, body.served)
    events = answers.events_of(engine, spec, [body.asked()])
    if body.parallel_tool_calls is False:
        events = answers.one_call_each(events)
    if not body.stream:
        return JSONResponse(await unless_gone(request, _whole(body, events)), headers=named(spec))
    chunks = _chunks(body, await unless_gone(request, begun(events)), events)
    return answers.EventStream(chunks, named(spec))


@router.post("/models/{model:path}/v1/chat/completions")
async def create_chat_completion_at_model(
    model: str, body: ChatRequest, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """The same at a model's own URL, where InferenceClient asks; the `model` of the body does not count."""
    named = body.model_copy(update={"model": model})
    return await create_chat_completion(named, request, hub, caller, engine)


async def _whole(body: ChatRequest, events: AsyncGenerator[Event, None]) -> dict[str, Any]:
    async with aclosing(events):
        found, usage, execution_id = await answers.gathered(events, body.n)
    return {
        **answers.envelope("chatcmpl", "chat.completion", body.model),
        "choices": [
            {
                "index": index,
                "message": one.message(),
                "logprobs": answers.chat_logprobs(one.logprobs) if body.logprobs else None,
                "finish_reason": one.reason,
            }
            for index, one in enumerate(found)
        ],
        "usage": usage.as_json(),
        "system_fingerprint": execution_id,
    }


async def _chunks(
    body: ChatRequest, started: Started, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[dict[str, Any], None]:
    head = answers.envelope("chatcmpl", "chat.completion.chunk", body.model)
    head |= {"system_fingerprint": started.execution_id} | ({"usage": None} if body.includes_usage else {})
    usage = answers.Usage()
    usage.count(started)
    callers: set[int] = set()
    async with aclosing(events):
        for index in range(body.n):
            yield head | {"choices": [_choice(index, {"role": "assistant", "content": ""})]}
        async for event in events:
            usage.count(event)
            if isinstance(event, Delta):
                logprobs = answers.chat_logprobs(event.logprobs) if event.logprobs else None
                yield head | {"choices": [_choice(event.index, {"content": event.text}, logprobs)]}
            elif isinstance(event, Called):
                callers.add(event.index)
                yield head | {"choices": [_choice(event.index, {"tool_calls": [_piece(event)]})]}
            elif isinstance(event, Finished):
                reason = answers.reason_of(event, has_called=event.index in callers)
                yield head | {"choices": [_choice(event.index, {}, reason=reason)]}
    if body.includes_usage:
        yield head | {"choices": [], "usage": usage.as_json()}


def _piece(event: Called) -> dict[str, Any]:
    """A piece of a call: who is called under which id, in its first alone, and more of the arguments."""
    if not event.name:
        return {"index": event.number, "function": {"arguments": event.arguments}}
    return {"index": event.number, **answers.ToolCall(event.name, event.arguments).as_json()}


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
