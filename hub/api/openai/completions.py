"""POST /v1/completions. Source: platform.openai.com/docs/api-reference/completions, as the openai client reads it."""

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai import answers
from adapterhub.hub.api.openai.requests import EngineDep, begun, named, unless_gone, variant
from adapterhub.hub.api.openai.schemas import CompletionRequest
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.protocol import Delta, Event, Finished, Generate, Started

router = APIRouter(tags=["openai"])


@router.post("/v1/completions")
async def create_completion(
    body: CompletionRequest, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """Continue one or several texts, in one piece or, with `stream`, as server-sent events.

    With `echo`, `logprobs` and max_tokens=0 it tells how likely the model holds a text.
    """
    most = hub.settings.max_logprobs
    if (body.logprobs or 0) > most:
        raise InvalidRequest(f"logprobs: {body.logprobs}; this server tells at most {most} (ADAPTERHUB_MAX_LOGPROBS)")
    if body.return_tokens_as_token_ids and hub.settings.engine == "external":
        raise InvalidRequest("return_tokens_as_token_ids: the external engine tells tokens as texts; leave it out")
    spec = await variant(hub, caller, body.served)
    asked = body.asked()
    events = answers.events_of(engine, spec, asked)
    if not body.stream:
        return JSONResponse(await unless_gone(request, _whole(body, asked, events)), headers=named(spec))
    chunks = _chunks(body, await unless_gone(request, begun(events)), events)
    return answers.EventStream(chunks, named(spec))


async def _whole(
    body: CompletionRequest, asked: Sequence[Generate], events: AsyncGenerator[Event, None]
) -> dict[str, Any]:
    by_id = body.return_tokens_as_token_ids
    async with aclosing(events):
        found, usage, execution_id = await answers.gathered(events, len(asked) * body.n)
    return {
        **answers.envelope("cmpl", "text_completion", body.model),
        "choices": [
            _choice(
                index,
                one.text,
                None if body.logprobs is None else answers.completion_logprobs(one.logprobs, by_id=by_id),
                one.reason,
            )
            for index, one in enumerate(found)
        ],
        "usage": usage.as_json(),
        "system_fingerprint": execution_id,
    }


async def _chunks(
    body: CompletionRequest, started: Started, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[dict[str, Any], None]:
    head = answers.envelope("cmpl", "text_completion", body.model)
    head |= {"system_fingerprint": started.execution_id} | ({"usage": None} if body.includes_usage else {})
    usage = answers.Usage()
    usage.count(started)
    told: Counter[int] = Counter()
    async with aclosing(events):
        async for event in events:
            usage.count(event)
            if isinstance(event, Delta):
                logprobs = None
                if event.logprobs:
                    by_id = body.return_tokens_as_token_ids
                    logprobs = answers.completion_logprobs(event.logprobs, told[event.index], by_id=by_id)
                told[event.index] += sum(len(one.text) for one in event.logprobs)
                yield head | {"choices": [_choice(event.index, event.text, logprobs)]}
            elif isinstance(event, Finished):
                yield head | {"choices": [_choice(event.index, "", reason=event.reason)]}
    if body.includes_usage:
        yield head | {"choices": [], "usage": usage.as_json()}


def _choice(index: int, text: str, logprobs: dict[str, Any] | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
