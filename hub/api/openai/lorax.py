"""POST /generate and /generate_stream, as LoRAX's clients ask: adapters by name, or several merged for one request.

Source: github.com/predibase/lorax, clients/python/lorax/types.py and docs/guides/merging_adapters.md. Differs: LoRAX
merges the factors A and B of adapters each for itself, so that its weights count twice and the products mix; here a
merge is of the deltas, exactly, and adapters may be of any kind and rank. dare_ties divides by the weights of those
that agree, where LoRAX divides by their number.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, StreamingResponse

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.openai.requests import EngineDep, begun, named, unless_gone, variant
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import composing
from adapterhub.hub.serving.protocol import Delta, Event, Finished, Generate, Sampling, Started, TokenLogprob

router = APIRouter(tags=["lorax"])

UNSUPPORTED: Mapping[str, Any] = {
    "ignore_eos_token": False,
    "truncate": None,
    "typical_p": None,
    "best_of": None,
    "watermark": False,
    "response_format": None,
    "return_k_alternatives": None,
    "top_n_tokens": None,
}
"""Parameters that would change an answer and are not computed here, with the values that do not."""
_TIES: Mapping[str, bool | str] = {"elect": "unweighted", "normalize": "count"}
_TIES_OF_DARE: Mapping[str, bool | str] = {"elect": "unweighted", "normalize": True}


class MergedAdapters(BaseModel):
    """Adapters to merge for this request. weights: 1 each where they are not given."""

    model_config = ConfigDict(extra="forbid")

    ids: list[Annotated[str, Field(min_length=1, max_length=400)]] = Field(min_length=1, max_length=256)
    weights: list[float] = Field(default_factory=list)
    merge_strategy: Literal["linear", "ties", "dare_linear", "dare_ties"] | None = None
    density: float = 0.0
    majority_sign_method: Literal["total", "frequency"] | None = None

    def expression(self, base: str | None) -> str:
        """What it means here. Raises InvalidRequest, and as `composing.expression`."""
        weights = self.weights or [1.0] * len(self.ids)
        if len(weights) != len(self.ids):
            raise InvalidRequest(f"merged_adapters: {len(self.ids)} ids and {len(weights)} weights")
        inputs = list(zip(self.ids, weights, strict=True))
        strategy = self.merge_strategy or "linear"
        if strategy == "linear":
            return composing.expression(base, inputs)
        if self.majority_sign_method == "frequency":
            raise InvalidRequest(
                "majority_sign_method: frequency is one of peft's; write peft_ties(...) as the model of /v1/completions"
            )
        more = {"ties": _TIES, "dare_ties": _TIES_OF_DARE}.get(strategy, {})
        return composing.expression(base, inputs, strategy, {"density": self.density, **more})


class JsonGrammar(BaseModel):
    """A JSON schema that the answer follows, as TGI's clients send it."""

    type: Literal["json"]
    value: dict[str, Any]


class Parameters(BaseModel):
    """How to answer; names and defaults are LoRAX's, and TGI's, of which it came."""

    model_config = ConfigDict(extra="allow")

    model_id: str | None = Field(default=None, max_length=4096)
    adapter_id: str | None = Field(default=None, max_length=4096)
    adapter_source: str | None = None
    merged_adapters: MergedAdapters | None = None
    adapters: MergedAdapters | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = Field(default=None, ge=0, le=1 << 20)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    grammar: JsonGrammar | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = Field(default=None, max_length=16)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    details: bool | None = None
    decoder_input_details: bool | None = None


class LoraxRequest(BaseModel):
    """POST /generate. inputs: the prompt."""

    inputs: str = Field(min_length=1)
    parameters: Parameters = Field(default_factory=Parameters)
    stream: bool | None = None

    def model(self) -> str:
        """The expression that is asked for. Raises InvalidRequest for none, for two, and for what is not computed."""
        told = self.parameters
        more = {name: value for name, value in (told.model_extra or {}).items() if value is not None}
        for name, value in more.items():
            if name in UNSUPPORTED and value != UNSUPPORTED[name]:
                raise InvalidRequest(f"{name}: not supported by this server")
        if told.adapter_source not in (None, "", "hub"):
            raise InvalidRequest(f"adapter_source: {told.adapter_source!r}; adapters come from this hub alone")
        merged = told.merged_adapters or told.adapters
        if merged is not None and told.adapter_id:
            raise InvalidRequest("say at most one of adapter_id and merged_adapters")
        if merged is not None:
            return merged.expression(told.model_id)
        asked = told.adapter_id or told.model_id
        if not asked:
            raise InvalidRequest("say what answers: adapter_id, merged_adapters, or model_id")
        is_one = told.model_id and told.adapter_id
        return composing.expression(told.model_id, [(asked, 1.0)]) if is_one else asked

    def asked(self) -> Generate:
        """The request as an engine takes it: greedy, unless something is said of sampling."""
        told = self.parameters
        draws = bool(told.do_sample) or any(one is not None for one in (told.temperature, told.top_k, told.top_p))
        return Generate(
            prompt=self.inputs,
            max_tokens=told.max_new_tokens,
            stop=tuple(told.stop or ()),
            echo=bool(told.decoder_input_details),
            json_schema=None if told.grammar is None else told.grammar.value,
            logprobs=0,
            sampling=Sampling(
                temperature=(1.0 if told.temperature is None else told.temperature) if draws else 0.0,
                top_k=told.top_k,
                top_p=1.0 if told.top_p is None else told.top_p,
                repetition_penalty=1.0 if told.repetition_penalty is None else told.repetition_penalty,
                frequency_penalty=told.frequency_penalty or 0.0,
                seed=told.seed,
            ),
        )


@router.post("/generate")
async def generate(body: LoraxRequest, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep) -> Response:
    """Continue a text with an adapter, or with several merged for this request, as LoRAX does."""
    if body.stream:
        return await generate_stream(body, request, hub, caller, engine)
    spec = await variant(hub, caller, body.model())
    events = engine.generate(spec, body.asked())
    return JSONResponse(await unless_gone(request, _whole(body, events)), headers=named(spec))


@router.post("/generate_stream")
async def generate_stream(
    body: LoraxRequest, request: Request, hub: HubDep, caller: CallerDep, engine: EngineDep
) -> Response:
    """The same token by token, as server-sent events; the last holds the whole text."""
    spec = await variant(hub, caller, body.model())
    events = engine.generate(spec, body.asked())
    started = await unless_gone(request, begun(events))
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **named(spec)}
    return StreamingResponse(_told(_tokens(body, started, events)), headers=headers, media_type="text/event-stream")


class _Told:
    """What was generated so far. tokens: with the text that each added, which together are the whole; a token may be
    less than a character."""

    def __init__(self, body: LoraxRequest) -> None:
        self._body = body
        self._left_out = len(body.inputs) if body.parameters.decoder_input_details else 0
        self.prompt_tokens = 0
        self.text = ""
        self.prefill: list[TokenLogprob] = []
        self.tokens: list[TokenLogprob] = []
        self.reason = "length"

    def take(self, event: Event) -> None:
        match event:
            case Started():
                self.prompt_tokens = event.prompt_tokens
            case Delta() if self._left_out:  # the prompt, which comes first and whole
                self.prefill, self._left_out = list(event.logprobs), 0
            case Delta():
                self.text += event.text
                self.tokens += [replace(one, text="") for one in event.logprobs]
                if self.tokens:
                    self.tokens[-1] = replace(self.tokens[-1], text=self.tokens[-1].text + event.text)
            case Finished():
                by = "stop_sequence" if event.by_text else "eos_token"
                self.reason = "length" if event.reason == "length" else by

    @property
    def whole(self) -> str:
        return self._body.inputs + self.text if self._body.parameters.return_full_text else self.text

    def details(self) -> dict[str, Any]:
        return {
            "finish_reason": self.reason,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": len(self.tokens),
            "skipped_tokens": 0,
            "seed": self._body.parameters.seed,
        }


async def _whole(body: LoraxRequest, events: AsyncIterator[Event]) -> dict[str, Any]:
    told = _Told(body)
    async for event in events:
        told.take(event)
    answer: dict[str, Any] = {"generated_text": told.whole}
    if body.parameters.details or body.parameters.decoder_input_details:
        prefill = [{"id": one.id, "text": one.text, "logprob": one.logprob} for one in told.prefill]
        answer["details"] = {**told.details(), "prefill": prefill, "tokens": [_token(one) for one in told.tokens]}
    return answer


async def _tokens(
    body: LoraxRequest, started: Started, events: AsyncGenerator[Event, None]
) -> AsyncIterator[dict[str, Any]]:
    told, count = _Told(body), 0
    told.take(started)
    async with aclosing(events):
        async for event in events:
            told.take(event)
            for one in told.tokens[count:-1]:
                yield {"token": _token(one), "generated_text": None, "details": None}
                count += 1
    if told.tokens:
        yield {"token": _token(told.tokens[-1]), "generated_text": told.whole, "details": told.details()}


async def _told(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data:{json.dumps(chunk, ensure_ascii=False)}\n\n"
    except AdapterHubError as error:
        told = {"error": str(error), "error_type": "generation"}
        yield f"data:{json.dumps(told)}\n\n"


def _token(one: TokenLogprob) -> dict[str, Any]:
    return {"id": one.id, "text": one.text, "logprob": one.logprob, "special": False, "skipped": False}
