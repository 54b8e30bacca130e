"""What is asked of an engine over HTTP in OpenAI's shapes, and its chunks as our events."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.hub.errors import EngineUnavailable, InvalidRequest
from adapterhub.hub.serving.protocol import Delta, Event, Finished, Generate, Json, Started, Task, TokenLogprob

_REASONS = ("stop", "length")
_ALL = -1
"""A top_k that keeps all tokens, for vLLM as for SGLang."""


def route(request: Generate) -> str:
    """Where a generation is asked for."""
    return "/v1/completions" if request.messages is None else "/v1/chat/completions"


def body(request: Generate, addressed: Mapping[str, Any]) -> Json:
    """The request. Every way of sampling is said: a server would else take the model's generation_config.json."""
    sampling = request.sampling
    asked: Json = {
        **addressed,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "n": request.n,
        "stop": list(request.stop),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": _ALL if sampling.top_k is None else sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.logit_bias:
        asked["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        asked["seed"] = sampling.seed
    if request.json_schema is not None:
        schema = {"name": "answer", "schema": dict(request.json_schema)}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    return asked | _prompt(request)


def _prompt(request: Generate) -> Json:
    if request.messages is not None:
        chat: Json = {"messages": [dict(message) for message in request.messages]}
        if request.max_tokens is not None:  # without, a chat may fill the context, and a completion gets 16 tokens
            chat["max_tokens"] = request.max_tokens
        return chat if request.logprobs is None else {**chat, "logprobs": True, "top_logprobs": request.logprobs}
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt or ())
    asked: Json = {"prompt": prompt, "echo": request.echo, "max_tokens": request.max_tokens}
    return asked if request.logprobs is None else {**asked, "logprobs": request.logprobs}


@dataclass
class _Counts:
    """Numbers of tokens, as the chunks tell them: of one answer in its own, of all in the last."""

    prompt: int = 0
    by_answer: dict[int, int] = field(default_factory=dict)
    total: int | None = None

    def see(self, usage: Any, choices: Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(usage, Mapping):
            return
        self.prompt = int(usage.get("prompt_tokens") or self.prompt)
        completion = int(usage.get("completion_tokens") or 0)
        if len(choices) == 1:
            self.by_answer[int(choices[0].get("index", 0))] = completion
        elif not choices:
            self.total = completion

    def of(self, indices: Sequence[int]) -> list[int]:
        """Of each answer; what only the total tells is the last one's."""
        found = [self.by_answer.get(index, 0) for index in indices]
        if found and self.total is not None:
            found[-1] += self.total - sum(found)
        return found


async def events(
    chunks: AsyncIterator[Json], request: Generate, execution_id: str, materialise_ms: float
) -> AsyncIterator[Event]:
    """Started, then Delta and Finished of each answer. Raises EngineUnavailable for an answer that was aborted.

    Answers are finished once the stream is: the numbers of tokens come last.
    """
    counts = _Counts()
    ended: dict[int, tuple[str, bool]] = {}
    told_prompt: int | None = None
    async for chunk in chunks:
        choices = chunk.get("choices") or []
        counts.see(chunk.get("usage"), choices)
        if told_prompt is None:
            told_prompt = counts.prompt
            yield Started(told_prompt, execution_id, materialise_ms)
        for choice in choices:
            index = int(choice.get("index", 0))
            delta = _delta(index, choice, request)
            if delta.text or delta.logprobs:
                yield delta
            if choice.get("finish_reason"):
                ended[index] = _ending(choice)
    if told_prompt is None or len(ended) < request.n:
        raise EngineUnavailable("the engine ended the stream before the answer was complete")
    indices = sorted(ended)
    late = counts.prompt - told_prompt
    for index, tokens in zip(indices, counts.of(indices), strict=True):
        reason, by_text = ended[index]
        yield Finished(index, reason, tokens, by_text, late if index == indices[0] else 0)


def _ending(choice: Mapping[str, Any]) -> tuple[str, bool]:
    reason = str(choice["finish_reason"])
    if reason not in _REASONS:
        raise EngineUnavailable(f"the engine ended the answer for the reason {reason!r}")
    stopped_by = choice.get("stop_reason") if "stop_reason" in choice else choice.get("matched_stop")
    return reason, isinstance(stopped_by, str)


def _delta(index: int, choice: Mapping[str, Any], request: Generate) -> Delta:
    text = choice.get("text") if request.messages is None else (choice.get("delta") or {}).get("content")
    told = choice.get("logprobs")
    if request.logprobs is None or not told:
        return Delta(index, text or "")
    read = _completion_logprobs if request.messages is None else _chat_logprobs
    return Delta(index, text or "", tuple(read(told, request.logprobs)))


def _completion_logprobs(told: Mapping[str, Any], most: int) -> list[TokenLogprob]:
    tokens = told.get("tokens") or []
    tops = told.get("top_logprobs") or [None] * len(tokens)
    likeliest = [sorted((top or {}).items(), key=lambda pair: -pair[1])[:most] for top in tops]
    logprobs = told.get("token_logprobs") or [None] * len(tokens)
    return [TokenLogprob(*one) for one in zip(tokens, logprobs, likeliest, strict=True)]


def _chat_logprobs(told: Mapping[str, Any], most: int) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            one["token"],
            one["logprob"],
            [(top["token"], top["logprob"]) for top in (one.get("top_logprobs") or [])[:most]],
        )
        for one in told.get("content") or []
    ]


def embedding_body(request: Task, addressed: Mapping[str, Any]) -> Json:
    """A request for vectors. Raises InvalidRequest for any other task."""
    if request.task != "embeddings":
        raise InvalidRequest(
            f"{request.task}: an external engine generates text and makes embeddings (/v1/embeddings); serve other "
            "tasks with ADAPTERHUB_ENGINE=embedded"
        )
    asked: Json = {**addressed, "input": request.inputs, "encoding_format": "float"}
    dimensions = request.parameters.get("dimensions")
    return asked if dimensions is None else {**asked, "dimensions": dimensions}


def vectors(answer: Any) -> Json:
    """The vectors and the number of tokens of a reply. Raises EngineUnavailable for one of another shape."""
    try:
        found = sorted(answer["data"], key=lambda one: one["index"])
        return {"vectors": [one["embedding"] for one in found], "tokens": int(answer["usage"]["prompt_tokens"])}
    except (KeyError, TypeError, ValueError):
        raise EngineUnavailable("the engine answered a request for vectors in another shape than OpenAI's") from None
