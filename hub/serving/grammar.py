"""Answers that follow a JSON schema: which tokens may come next. Imports torch: only an engine's process loads this."""

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


class Schema:
    """A schema compiled for one model's tokenizer; each answer follows a `Follower` of its own."""

    def __init__(self, schema: Mapping[str, Any], tokenizer: Any, vocabulary_size: int, ends: Iterable[int]) -> None:
        """ends: tokens that end an answer. Raises InvalidRequest for a schema that is none or is not known whole, and
        for a tokenizer whose tokens are not known one by one."""
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise InvalidRequest(
                f"the JSON schema has {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS} are read"
            )
        try:
            self._grammar = LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT)
        except ValueError as error:
            raise InvalidRequest(f"the JSON schema is refused: {error}") from error
        problem = LLMatcher.validate_grammar(self._grammar)
        if problem:
            raise InvalidRequest(f"the JSON schema is refused: {problem}")
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
