"""Answers that follow a JSON schema, or call a tool: which tokens may come next.

Imports torch: only an engine's process loads this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from adapterhub.hub.errors import InvalidRequest

MAX_SCHEMA_CHARACTERS = 1 << 18
"""Longest schema that is compiled."""

_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}

_tokenizers: WeakKeyDictionary[Any, LLTokenizer] = WeakKeyDictionary()


def of_schema(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON by a schema. Raises InvalidRequest for a schema that is none or is not known whole."""
    try:
        return _sound(LLMatcher.grammar_from_json_schema(_written(schema), overrides=_COMPACT))
    except ValueError as error:
        raise InvalidRequest(f"the JSON schema is refused: {error}") from error


def of_calls(choices: Mapping[str, Mapping[str, Any]], between: str) -> str:
    """The grammar of `name between JSON`, the JSON by the name's schema, or of the JSON alone where one name is left.

    Raises as `of_schema`, naming the tool.
    """
    for name, schema in choices.items():
        try:
            alone = of_schema(schema)
        except InvalidRequest as error:
            raise InvalidRequest(f"tools: {name}: {error}") from error
        if len(choices) == 1:
            return alone
    rules = [
        f"call_{at}: {json.dumps(name + between)} %json {_written({**schema, 'x-guidance': _COMPACT})}"
        for at, (name, schema) in enumerate(choices.items())
    ]
    start = " | ".join(f"call_{at}" for at in range(len(choices)))
    return _sound(LLMatcher.grammar_from_lark("\n".join(["%llguidance {}", f"start: {start}", *rules])))


def _written(schema: Mapping[str, Any]) -> str:
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise InvalidRequest(f"the JSON schema has {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS} are read")
    return text


def _sound(grammar: str) -> str:
    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        raise InvalidRequest(f"the JSON schema is refused: {problem}")
    return grammar


class Grammar:
    """A grammar for one model's tokenizer; each answer follows a `Follower` of its own."""

    def __init__(self, grammar: str, tokenizer: Any, vocabulary_size: int, ends: Iterable[int]) -> None:
        """ends: tokens that end an answer. Raises InvalidRequest for a tokenizer whose tokens are not known one by
        one."""
        self._grammar = grammar
        self._size = vocabulary_size
        self._tokenizer = _known(tokenizer, vocabulary_size, list(ends))

    def follower(self) -> Follower:
        """The state of one answer, at its beginning."""
        return Follower(LLMatcher(self._tokenizer, self._grammar), self._size)


class Follower:
    """What one answer may go on with."""

    def __init__(self, matcher: LLMatcher, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary_size)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more may come."""
        return bool(self._matcher.is_stopped())

    def allowed(self, logits: Tensor) -> Tensor:
        """`logits` (vocabulary,), with those of tokens that may not come at -inf; not modified."""
        # llguidance.torch compiles its kernel at first use, for which the machine needs a C++ compiler
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: logits.shape[-1]]
        allowed = torch.from_numpy(bits).to(device=logits.device, dtype=torch.bool)
        return logits.float().masked_fill(~allowed, -torch.inf)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)


def _known(tokenizer: Any, vocabulary_size: int, ends: list[int]) -> LLTokenizer:
    found = _tokenizers.get(tokenizer)
    if found is None:
        try:
            found = llguidance.hf.from_tokenizer(tokenizer, vocabulary_size, eos_token=ends or None)
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"this model's tokenizer takes no JSON schema: {error}") from error
        _tokenizers[tokenizer] = found
    return found
