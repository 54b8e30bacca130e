"""How a request's tools are told to a model, and how an answer is made to be a call of one. Never imports torch.

What a model writes before the name and before the arguments of a call is learnt from its own chat template, by
rendering a call with it: a call that is forced reads as one that the model made by itself.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jinja2

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.protocol import Generate
from adapterhub.hub.serving.tool_calls import Forced, Reader, reader_of

Messages = Sequence[Mapping[str, Any]]

_NAME, _KEY = "adapterhub_name", "adapterhub_key"
_EXAMPLE = {"role": "assistant", "content": "", "tool_calls": [
    # Mistral's templates want ids of nine letters and digits
    {"id": "call00000", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: 0}}}
]}  # fmt: skip
_PLAIN = '{"name": "', '", "arguments": '
"""Around a name, where the template does not show how."""


class Calling:
    """The tools of one request, of a model whose chat template tells of them."""

    def __init__(self, tokenizer: Any, request: Generate) -> None:
        """Raises InvalidRequest for a model that knows no tools, and as `rendered` and `reader_of`."""
        messages, tools = request.messages or (), list(request.tools)
        if not tokenizer.chat_template:
            raise InvalidRequest("tools: this model has no chat template, so it knows no tools")
        self.prompt = rendered(tokenizer, messages, tools)
        if not _tells_of_tools(tokenizer, messages, self.prompt):
            raise InvalidRequest("tools: this model's chat template knows no tools; send none, or ask another model")
        self.choices: Mapping[str, Mapping[str, Any]] = {}
        self.between = ""
        self._tokenizer, self._tools = tokenizer, tools
        if request.must_call:
            self._force(request)
        self.seen = () if self.choices else self._reader()[1]

    def reader(self) -> Reader:
        """What reads one answer."""
        return Forced(list(self.choices), self.between) if self.choices else self._reader()[0]

    def _reader(self) -> tuple[Reader, Collection[str] | None]:
        return reader_of(self._tokenizer, self.prompt, self._tools)

    def _force(self, request: Generate) -> None:
        """Let the prompt end where the model is to choose: behind the name of the one tool, or before that of one."""
        before, between = _around_name(self._tokenizer, request, self.prompt)
        schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in request.tools}
        self.choices = {name: {"type": "object", **schemas[name]} for name in request.must_call}
        self.prompt += before
        if len(self.choices) == 1:
            self.prompt += request.must_call[0] + between
        else:
            self.between = between


def rendered(tokenizer: Any, messages: Messages, tools: Sequence[Any] = (), *, is_open: bool = True) -> str:
    """The messages by the model's chat template. is_open: with the beginning of the answer.

    Templates take the arguments of calls as objects; those that do not, as the text that OpenAI's clients send; and
    some want ids of their own form. Raises InvalidRequest for messages that the template refuses.
    """
    options = {"tools": list(tools) or None, "add_generation_prompt": is_open, "tokenize": False}
    refusals = []
    for put in (_with_objects, _with_texts, _with_short_ids):
        try:
            return str(tokenizer.apply_chat_template(put(messages), **options))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            refusals.append(error)
    raise InvalidRequest(f"the model's chat template refuses these messages: {refusals[0]}") from refusals[0]


def _tells_of_tools(tokenizer: Any, messages: Messages, prompt: str) -> bool:
    try:
        return rendered(tokenizer, messages) != prompt
    except InvalidRequest:
        return True


def _around_name(tokenizer: Any, request: Generate, prompt: str) -> tuple[str, str]:
    """What the model writes before the name of a call, and between it and the arguments."""
    try:
        whole = rendered(tokenizer, [*(request.messages or ()), _EXAMPLE], request.tools, is_open=False)
    except InvalidRequest:
        return _PLAIN
    added = whole[len(prompt) :] if whole.startswith(prompt) else ""
    found = re.match(rf'(.*?){_NAME}(.*?)\{{\s*"{_KEY}"', added, re.DOTALL)
    return (found[1], found[2]) if found else _PLAIN


def _with_objects(messages: Messages) -> list[Mapping[str, Any]]:
    return _with_arguments(messages, lambda value: json.loads(value) if isinstance(value, str) else value)


def _with_texts(messages: Messages) -> list[Mapping[str, Any]]:
    return _with_arguments(messages, lambda value: value if isinstance(value, str) else json.dumps(value))


def _with_short_ids(messages: Messages) -> list[Mapping[str, Any]]:
    """With objects as arguments, and ids of nine digits, as Mistral's templates demand."""
    said = _with_objects(messages)
    ids = {call.get("id"): f"{number:09}" for number, call in enumerate(_calls(said))}
    for call in _calls(said):
        call["id"] = ids[call.get("id")]
    return [
        {**one, "tool_call_id": ids.get(one["tool_call_id"], "0" * 9)} if "tool_call_id" in one else one for one in said
    ]


def _calls(messages: Messages) -> list[dict[str, Any]]:
    return [call for message in messages for call in message.get("tool_calls") or ()]


def _with_arguments(messages: Messages, said: Any) -> list[Mapping[str, Any]]:
    """The messages with the arguments of their calls as `said` makes them."""

    def call(one: Mapping[str, Any]) -> Mapping[str, Any]:
        function = one["function"]
        return {**one, "function": {**function, "arguments": said(function["arguments"])}}

    return [
        {**message, "tool_calls": [call(one) for one in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]
