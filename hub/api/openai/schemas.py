"""What the OpenAI dialect takes. A field that would change the answer and is not known here is refused, not ignored."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapterhub.hub.services import composing
from adapterhub.hub.serving.protocol import Generate, Sampling, Task

MAX_ANSWERS = 8
MAX_STOPS = 4
MAX_ALTERNATIVES = 20
MAX_TOOLS = 128
MAX_NAME = 64

_WITHOUT_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
    | {"tool_prompt", "adapter_id"}
)
"""Fields that clients send and that do not change an answer."""

Count = Annotated[int, Field(ge=0, le=1 << 20)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]]


class StreamOptions(BaseModel):
    """include_usage: send the numbers of tokens in a last chunk."""

    include_usage: bool = False


class Part(BaseModel):
    """One input of a composition. repo: "ns/name" or "ns/name/folder"; weight: what it counts."""

    model_config = ConfigDict(extra="forbid")

    repo: str = Field(min_length=1, max_length=400)
    revision: str | None = Field(default=None, max_length=200)
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


class Composition(BaseModel):
    """The model in parts, for those who do not like to write an expression: `extra_body={"adapterhub": ...}`.

    base: the request's `model` where it is not said. params: of the method, by name. execution: how the patches of the
    model are to be computed with; what is cheaper at the moment where it is not said.
    """

    model_config = ConfigDict(extra="forbid")

    base: str | None = Field(default=None, max_length=400)
    patches: list[Part] | None = Field(default=None, min_length=1, max_length=256)
    method: str | None = Field(default=None, max_length=100)
    params: dict[str, float | bool | str] = Field(default_factory=dict)
    execution: Literal["merged", "run-time"] | None = None

    @model_validator(mode="after")
    def _need_patches(self) -> Self:
        if not self.patches and (self.base or self.method or self.params):
            raise ValueError("patches: base, method and params say how to put patches together, and none is given")
        return self


class _Served(BaseModel):
    """What names a model: `model`, and perhaps what to put on it."""

    model: str = Field(min_length=1, max_length=4096, description="A repository, base:patch, or an expression.")
    adapterhub: Composition | None = None

    @property
    def served(self) -> str:
        """The expression that is meant. Raises as `composing.expression`."""
        parts = self.adapterhub
        if parts is None or not parts.patches:
            return self.model
        inputs = [(one.name, one.weight) for one in parts.patches]
        return composing.expression(parts.base or self.model, inputs, parts.method, parts.params)


class _Request(_Served):
    """What both kinds of completion take."""

    model_config = ConfigDict(extra="allow")

    n: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=1, le=1 << 20)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)

    @model_validator(mode="after")
    def _refuse_unknown_wishes(self) -> Self:
        wishes = {name for name, value in (self.model_extra or {}).items() if value not in (None, [], {})}
        unknown = sorted(wishes - _WITHOUT_EFFECT)
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not supported by this server")
        if len(self.stops) > MAX_STOPS:
            raise ValueError(f"stop: at most {MAX_STOPS} texts, {len(self.stops)} were sent")
        return self

    @property
    def execution(self) -> str | None:
        return None if self.adapterhub is None else self.adapterhub.execution

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> Sampling:
        """How tokens are chosen; OpenAI's defaults where nothing is said."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
        )


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """The tool of a call and its arguments, as JSON text of an object."""

    name: str = Field(max_length=MAX_NAME)
    arguments: str = ""

    @model_validator(mode="after")
    def _read(self) -> Self:
        try:
            found = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"arguments: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError("arguments: the JSON of an object is expected")
        self.arguments = self.arguments or "{}"
        return self


class ToolCall(BaseModel):
    """A call that an assistant's message made."""

    id: str = Field(default="", max_length=200)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One message; its other fields are handed to the model's chat template, as far as they say something."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(max_length=64)
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_TOOLS)

    def plain(self) -> Mapping[str, Any]:
        """The message with its content as one text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        calls = {"tool_calls": [one.model_dump() for one in self.tool_calls]} if self.tool_calls else {}
        more = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        return {"role": self.role, "content": content, **calls, **more}


class Function(BaseModel):
    """A function that may be called. parameters: a JSON schema of its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=MAX_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """What an answer may call; functions alone."""

    type: Literal["function"]
    function: Function


class _Named(BaseModel):
    name: str


class NamedTool(BaseModel):
    """The one tool that an answer must call."""

    type: Literal["function"]
    function: _Named


class JsonSchema(BaseModel):
    """A schema under a name. strict says nothing here: answers always follow it."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(max_length=200)
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer looks like: any text, a JSON object, or JSON of a schema.

    value: the schema of an object, as huggingface_hub's InferenceClient words it for TGI.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    value: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _need_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, which needs it")
        if self.value is not None and self.type != "json_object":
            raise ValueError("value goes with the type json_object")
        return self

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        """The schema that answers follow, None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return (self.value or {"type": "object"}) if self.type == "json_object" else None


class ChatRequest(_Request):
    """POST /v1/chat/completions. Without max_tokens an answer may fill the model's context."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_ALTERNATIVES)
    response_format: ResponseFormat | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @field_validator("tools", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any) -> Any:
        return [] if value is None else value

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"tools: {twice} is described twice")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tool_choice: there are no tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: {self.tool_choice.function.name} is not among the tools")
        form = self.response_format
        if names and self.tool_choice in (None, "auto") and form is not None and form.type != "text":
            raise ValueError("response_format: an answer that may call tools follows no schema; set tool_choice")
        return self

    @property
    def _must_call(self) -> tuple[str, ...]:
        """The tools of which one is to be called; none where the model decides."""
        if isinstance(self.tool_choice, NamedTool):
            return (self.tool_choice.function.name,)
        return tuple(tool.function.name for tool in self.tools) if self.tool_choice == "required" else ()

    def _messages(self) -> list[Mapping[str, Any]]:
        """The messages; a tool's answer says whose it is, as some templates show."""
        names = {call.id: call.function.name for message in self.messages for call in message.tool_calls or ()}
        plain = [dict(message.plain()) for message in self.messages]
        for message in plain:
            if message["role"] == "tool" and message.get("tool_call_id") in names:
                message.setdefault("name", names[message["tool_call_id"]])
        return list(plain)

    def asked(self) -> Generate:
        """The request as an engine takes it. With tool_choice "none" the model is told of no tools."""
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return Generate(
            messages=self._messages(),
            max_tokens=most,
            n=self.n,
            stop=self.stops,
            sampling=self.sampling(),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            json_schema=None if self.response_format is None else self.response_format.schema_of_answers,
            execution=self.execution,
            tools=tuple(tool.model_dump(exclude_none=True) for tool in self.tools if self.tool_choice != "none"),
            must_call=self._must_call,
        )


Tokens = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(_Request):
    """POST /v1/completions. prompt: a text, token ids, or a list of either."""

    prompt: str | Tokens | Annotated[list[str] | list[Tokens], Field(min_length=1, max_length=256)]
    max_tokens: Count | None = 16
    logprobs: int | None = Field(default=None, ge=0)
    return_tokens_as_token_ids: bool = False
    echo: bool = False

    def asked(self) -> list[Generate]:
        """The request as an engine takes it, one for each prompt."""
        return [
            Generate(
                prompt=prompt,
                max_tokens=self.max_tokens,
                n=self.n,
                stop=self.stops,
                sampling=self.sampling(),
                logprobs=self.logprobs,
                echo=self.echo,
                execution=self.execution,
            )
            for prompt in self._prompts()
        ]

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class EmbeddingRequest(_Served):
    """POST /v1/embeddings. input: a text, token ids, or a list of either. dimensions: how many numbers to keep."""

    model_config = ConfigDict(extra="forbid")

    input: str | Tokens | Annotated[list[str] | list[Tokens], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    def asked(self) -> Task:
        """The request as an engine takes it."""
        is_one = isinstance(self.input, str) or isinstance(self.input[0], int)
        inputs: Any = [self.input] if is_one else self.input
        return Task("embeddings", inputs, parameters={"dimensions": self.dimensions})
