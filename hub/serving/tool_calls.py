"""Reads the calls of tools out of what a model writes, in the convention of its chat template.

A convention is a reader: text goes in as it comes, and what is certain comes out, text or pieces of calls. What turns
out to be no call is text. Never imports torch.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.text import overlap


@dataclass(frozen=True)
class Call:
    """A piece of a call: see `protocol.Called`."""

    number: int
    name: str = ""
    arguments: str = ""


Piece = str | Call


class Reader(Protocol):
    """One answer as it is read."""

    def push(self, text: str) -> Sequence[Piece]:
        """What `text` makes certain."""

    def flush(self) -> Sequence[Piece]:
        """The rest, at the end of the answer."""


def reader_of(tokenizer: Any, prompt: str, tools: Sequence[Mapping[str, Any]]) -> tuple[Reader, Collection[str] | None]:
    """How this model's calls are read, and the texts of special tokens that this needs to see, None for all.

    prompt: what the model continues. Raises InvalidRequest for a response template that cannot be followed.
    """
    names = frozenset(tool["function"]["name"] for tool in tools)
    template = getattr(tokenizer, "response_template", None)
    if template is not None:
        return Described(template, prompt, tools), None
    written = str(tokenizer.get_chat_template(tools=list(tools)))
    if Tagged.OPEN in written:
        return Tagged(names), (Tagged.OPEN, Tagged.CLOSE)
    if Listed.MARK in written:
        return Listed(names), (Listed.MARK,)
    return Bare(names), ()


# ---- conventions -----------------------------------------------------------------------------------------------------


@dataclass
class Tagged:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them between other text.

    Source: NousResearch/Hermes-Function-Calling; Qwen 2.5 and 3 write the same.
    """

    OPEN = "<tool_call>"
    CLOSE = "</tool_call>"

    names: frozenset[str]
    _held: str = ""
    _begun: str = ""
    _is_open: bool = False
    _count: int = 0

    def push(self, text: str) -> Sequence[Piece]:
        self._held += text
        found: list[Piece] = []
        while (at := self._held.find(self.CLOSE if self._is_open else self.OPEN)) >= 0:
            before = self._held[:at]
            if self._is_open:
                found.append(self._read(before, self.CLOSE))
                self._held = self._held[at + len(self.CLOSE) :]
            else:
                # the lines between a text and its calls belong to neither
                said = before.rstrip()
                found.append(said)
                self._begun = before[len(said) :] + self.OPEN
                self._held = self._held[at + len(self.OPEN) :]
            self._is_open = not self._is_open
        if not self._is_open:
            sure = self._held[: len(self._held) - overlap(self._held, self.OPEN)].rstrip()
            found.append(sure)
            self._held = self._held[len(sure) :]
        return [one for one in found if one]

    def flush(self) -> Sequence[Piece]:
        rest, self._held = self._held, ""
        if self._is_open:
            return [self._read(rest, "")]
        return [rest] if rest.strip() or not self._count else []

    def _read(self, inner: str, close: str) -> Piece:
        calls = _calls(inner, self.names)
        if calls is None or len(calls) != 1:
            return self._begun + inner + close
        self._count += 1
        return Call(self._count - 1, *calls[0])


@dataclass
class Listed:
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]` at the end, the mark one special token.

    Source: the chat templates of mistralai/Mistral-7B-Instruct-v0.3 and Mistral-Nemo-Instruct-2407.
    """

    MARK = "[TOOL_CALLS]"

    names: frozenset[str]
    _held: str = ""
    _is_open: bool = False

    def push(self, text: str) -> Sequence[Piece]:
        self._held += text
        if self._is_open:
            return []
        at = self._held.find(self.MARK)
        self._is_open = at >= 0
        sure = self._held[: at if self._is_open else len(self._held) - overlap(self._held, self.MARK)].rstrip()
        self._held = self._held[len(sure) :]
        return [sure] if sure else []

    def flush(self) -> Sequence[Piece]:
        rest, self._held = self._held, ""
        if not self._is_open:
            return [rest] if rest else []
        calls = _calls(rest.partition(self.MARK)[2], self.names)
        if calls is None:
            return [rest]
        return [Call(number, *call) for number, call in enumerate(calls)]


@dataclass
class Bare:
    """`{"name": ..., "parameters": {...}}` and nothing else, as Llama 3.1 and 3.2 write one call.

    Source: github.com/meta-llama/llama-models, models/llama3_1/prompt_format.md.
    """

    names: frozenset[str]
    _held: str = ""
    _is_text: bool = False

    def push(self, text: str) -> Sequence[Piece]:
        self._held += text
        begin = self._held.lstrip()
        if not self._is_text and (not begin or begin.startswith("{")):
            return []
        self._is_text = True
        sure, self._held = self._held, ""
        return [sure] if sure else []

    def flush(self) -> Sequence[Piece]:
        rest, self._held = self._held, ""
        calls = _calls(rest, self.names)
        if calls is None:
            return [rest] if rest else []
        return [Call(number, *call) for number, call in enumerate(calls)]


class Described:
    """As the tokenizer's own `response_template` says, which transformers reads since 5.13.

    Fields other than calls and content, such as thoughts, are not told apart here: what they hold is content.
    """

    def __init__(self, template: Any, prompt: str, tools: Sequence[Mapping[str, Any]]) -> None:
        from transformers.utils import chat_parsing

        if not _is_tame(template):
            raise InvalidRequest(f"the model's response_template has patterns that may take for ever: {_SIMPLE}")
        parser: Any = chat_parsing.ResponseParser
        try:
            fields = template["fields"]
            kept = {name: {**fields[name], "optional": True} for name in ("tool_calls", "content") if name in fields}
            self._parser = parser({**template, "fields": kept}, prompt, tools=list(tools))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the model's response_template is refused: {error}") from error
        self._unsaid = ""
        self._count = 0
        self._is_broken = False

    def push(self, text: str) -> Sequence[Piece]:
        self._unsaid += text
        return self._told(lambda: self._parser.feed(text))

    def flush(self) -> Sequence[Piece]:
        return self._told(lambda: self._parser.finalize()[1])

    def _told(self, advance: Callable[[], Any]) -> Sequence[Piece]:
        """What the parser's events say; the text as it came, once it meets a call that it cannot read."""
        try:
            events = [] if self._is_broken else advance()
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            self._is_broken = True
        if self._is_broken:
            rest, self._unsaid = self._unsaid, ""
            return [rest] if rest else []
        return [piece for event in events for piece in self._pieces(event)]

    def _pieces(self, event: Mapping[str, Any]) -> Sequence[Piece]:
        if event["field"] == "content" and event["type"] == "region_chunk":
            text = str(event["text"])
            self._unsaid = self._unsaid.partition(text)[2]
            return [text]
        if event["field"] != "tool_calls" or event["type"] != "region_close":
            return []
        self._unsaid = ""
        value = event["value"]
        calls = [Call(self._count + number, *_called(one)) for number, one in enumerate(_listed(value))]
        self._count += len(calls)
        return calls


class Forced:
    """One call that a grammar allows alone: `name between {...}`, or its arguments where one name is left to choose."""

    def __init__(self, names: Sequence[str], between: str) -> None:
        self._beginnings = {name + between: name for name in names}
        self._only = names[0] if len(names) == 1 else ""
        self._held = ""
        self._has_begun = False

    def push(self, text: str) -> Sequence[Piece]:
        self._held += text
        found: list[Piece] = []
        if not self._has_begun:
            begun = next((one for one in self._beginnings if self._held.startswith(one)), None)
            if not self._only and begun is None:
                return []
            self._has_begun = True
            found.append(Call(0, self._only or self._beginnings[begun or ""]))
            self._held = self._held if self._only else self._held[len(begun or "") :]
        arguments, self._held = self._held, ""
        return [*found, Call(0, arguments=arguments)] if arguments else found

    def flush(self) -> Sequence[Piece]:
        return []


# ---- what they share -------------------------------------------------------------------------------------------------

_SIMPLE = "use groups without repetition, and (?:, (?P<name>, (?= and (?! alone"


def _calls(text: str, names: frozenset[str]) -> Sequence[tuple[str, str]] | None:
    """Name and arguments of each call in JSON text, None where it is anything else or names no tool of the request."""
    try:
        found = [_called(one) for one in _listed(json.loads(text))]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    return found if found and all(name in names for name, _ in found) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _called(value: Any) -> tuple[str, str]:
    """Name and arguments of one call. Raises KeyError, TypeError or ValueError for what is none."""
    function = value.get("function", value) if isinstance(value, dict) else {}
    arguments = function["arguments"] if "arguments" in function else function["parameters"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(function["name"], str) or not isinstance(arguments, dict):
        raise TypeError(f"no call: {value}")
    return function["name"], json.dumps(arguments, ensure_ascii=False)


def _is_tame(template: Any) -> bool:
    """Whether no pattern in it can take exponential time: it is a stranger's, and nothing could interrupt it."""
    if isinstance(template, dict):
        return all(
            _is_simple(value) if key.endswith("_pattern") else _is_tame(value) for key, value in template.items()
        )
    return all(map(_is_tame, template)) if isinstance(template, list) else True


def _is_simple(pattern: Any) -> bool:
    """Whether a pattern repeats no group and has no recursion."""
    return isinstance(pattern, str) and not re.search(r"(?<!\\)\)[*+{]|\(\?(?!:|P<|=|!)", pattern)
