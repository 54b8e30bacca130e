"""Generates text token by token, so that other requests can take turns between tokens.

Each answer has its own key-value cache, made under the weights it is continued with: whoever swaps weights between two
steps of different variants mixes nothing. Imports torch: only an engine's process loads this.
"""

import copy
import inspect
import secrets
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapterhub.hub.errors import InvalidRequest, TooLarge
from adapterhub.hub.serving import contracts, grammar
from adapterhub.hub.serving.batching import Batch, cache_name, is_joinable, keeps_logits, reads_rows, takes_rows
from adapterhub.hub.serving.calling import Calling, rendered
from adapterhub.hub.serving.grammar import Follower, Grammar
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.mixture import Adapter
from adapterhub.hub.serving.protocol import Called, Delta, Event, Finished, Generate, TokenLogprob
from adapterhub.hub.serving.rooms import Room
from adapterhub.hub.serving.sampling import Sampler
from adapterhub.hub.serving.text import Detokeniser, StopTexts
from adapterhub.hub.serving.tool_calls import Piece, Reader

MAX_TOKENS = 8192
"""Longest answer of a model that does not say how long its context is."""

LEAST_LOGPROB = -9999.0
"""Log probability that is told of a token that cannot come, as OpenAI has it."""


class Prompt:
    """The tokens of a request, checked against the model that is to continue them."""

    def __init__(self, loaded: Loaded, request: Generate) -> None:
        """Raises InvalidRequest for a model without a tokenizer or a head, TooLarge for a prompt beyond its context."""
        if not callable(getattr(loaded.model, "generate", None)) or not loaded.model.can_generate():
            raise InvalidRequest(f"{type(loaded.model).__name__} does not generate text")
        if loaded.model.config.is_encoder_decoder and request.echo and request.logprobs is not None:
            raise InvalidRequest("echo: an encoder-decoder reads its prompt at once and gives it no log probabilities")
        if "input_ids" not in inspect.signature(loaded.model.forward).parameters:
            raise InvalidRequest(
                f"{type(loaded.model).__name__} takes no text; send it what it hears or sees as a task"
            )
        if loaded.tokenizer is None:
            raise InvalidRequest("this model has no tokenizer files (tokenizer.json), so it cannot read text")
        self.calling = Calling(loaded.tokenizer, request) if request.tools else None
        self.tokens = _tokens(loaded.tokenizer, request, self.calling)
        contracts.check_prompt(loaded, self.tokens)
        embeddings: Any = loaded.model.get_input_embeddings()
        vocabulary = embeddings.num_embeddings
        if not self.tokens:
            raise InvalidRequest("the prompt has no tokens")
        if not 0 <= min(self.tokens) <= max(self.tokens) < vocabulary:
            raise InvalidRequest(f"a token of the prompt is not among the model's {vocabulary}")
        context = getattr(loaded.model.config, "max_position_embeddings", None)
        context = context - loaded.virtual_tokens if context else len(self.tokens) + MAX_TOKENS
        self.max_tokens = context - len(self.tokens) if request.max_tokens is None else request.max_tokens
        if self.max_tokens < (request.max_tokens is None) or len(self.tokens) + self.max_tokens > context:
            raise TooLarge(
                f"the model's context is {context} tokens{_beside(loaded)}; the prompt has {len(self.tokens)} and "
                f"{request.max_tokens or 'some'} more are asked for"
            )


def _beside(loaded: Loaded) -> str:
    return f" beside {loaded.virtual_tokens} virtual ones of its patches" if loaded.virtual_tokens else ""


def _tokens(tokenizer: Any, request: Generate, calling: Calling | None) -> list[int]:
    if calling is not None:
        return list(tokenizer(calling.prompt, add_special_tokens=False)["input_ids"])
    if request.messages is not None:
        return _chat_tokens(tokenizer, request.messages)
    if not isinstance(request.prompt, str):
        return list(request.prompt or ())
    found = list(tokenizer(request.prompt)["input_ids"])
    return found or [tokenizer.bos_token_id] * (tokenizer.bos_token_id is not None)


def _chat_tokens(tokenizer: Any, messages: Sequence[Any]) -> list[int]:
    """By the model's chat template. A model without one is no chat model: it continues the messages' text, joined by
    blank lines."""
    if not tokenizer.chat_template:
        return list(tokenizer("\n\n".join(str(message["content"]) for message in messages))["input_ids"])
    return list(tokenizer(rendered(tokenizer, messages), add_special_tokens=False)["input_ids"])


PIECE = 512
"""Tokens of a prompt that are read at a time: between two pieces others compute, and memory is that of one."""


class _Answer:
    """One of the n answers: its cache, sampler and text so far."""

    def __init__(
        self,
        index: int,
        sampler: Sampler,
        detokeniser: Detokeniser,
        stops: StopTexts,
        follower: Follower | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.index = index
        self.follower = follower
        self.reader = reader
        self.sampler = sampler
        self.detokeniser = detokeniser
        self.stops = stops
        self.logits: Tensor | None = None
        self.cache: Any = None
        self.tokens: list[int] = []
        self.length = 0
        self.batch: Batch | None = None
        self.adapter: Adapter | None = None


@dataclass
class _Unread:
    """A prompt, and what is known once it is read, see `batching.Prompt`."""

    tokens: Sequence[int]
    adapter: Adapter | None
    logits: Tensor | None = None
    cache: Any = None


class Generation:
    """The computation of one request. `steps` yields after each piece of work; between two of them the model may
    compute for others, and must hold the weights of this request's variant again before the next."""

    def __init__(self, loaded: Loaded, request: Generate, prompt: Prompt, room: Room | None = None) -> None:
        """room: where the memory of the answers is counted, None where it is not."""
        assert loaded.tokenizer is not None
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._request = request
        self._prompt = prompt
        self._room = room or Room()
        self._ends = end_tokens(loaded)
        self._is_pair = bool(self._model.config.is_encoder_decoder)
        self._encoded: Any = None
        # peft's tuners look for the older name, under which transformers takes it too
        self._cache_name = "past_key_values" if loaded.is_patched else cache_name(loaded.model)
        self._before_pass = loaded.before_pass
        self._adapter = loaded.adapter
        self._takes_rows = takes_rows(loaded.model) and not loaded.is_patched
        self._answers: list[_Answer] = []
        self._calling = prompt.calling
        self._hidden = _hidden(self._tokenizer, self._calling)
        self._grammar = self._compiled()
        self._has_logits_to_keep = keeps_logits(self._model)
        self._unread = _Unread(prompt.tokens, loaded.adapter)
        self._reads_pieces = reads_rows(loaded.model) and not loaded.is_patched
        self._is_read_alone = (
            request.n > 1
            or (request.echo and request.logprobs is not None)
            or not self._reads_pieces
            or len(prompt.tokens) > PIECE
        )

    def steps(self) -> Iterator[Sequence[Event]]:
        """The events that each step brings, possibly none. Raises what torch raises, Overloaded where an answer gets
        longer than there is memory for."""
        first, echoed = yield from self._read_prompt()
        answers = self._answers = [self._answer(index, first) for index in range(self._request.n)]
        if echoed:
            yield [Delta(answer.index, *echoed) for answer in answers]
        while answers:
            # all in one step: those that decode together come to their next logits together
            found: list[Event] = []
            for answer in list(answers):
                events = self._advance(answer)
                if events and isinstance(events[-1], Finished):
                    answers.remove(answer)
                found += events
            yield found

    def rows(self) -> list[_Answer]:
        """The answers whose next logits somebody else may compute, see `batching.Row`."""
        if not self._takes_rows:
            return []
        return [
            answer
            for answer in self._answers
            if answer.logits is None and answer.tokens and (answer.batch is not None or is_joinable(answer.cache))
        ]

    def unread(self) -> _Unread | None:
        """The prompt, where somebody else may read it."""
        return None if self._is_read_alone or self._answers or self._unread.logits is not None else self._unread

    def awaited(self) -> Future[Any] | None:
        """What somebody else computes, and the next step needs; None where there is no such thing."""
        return None

    def make_room(self, tokens: int) -> None:
        """Have memory for answers of so many tokens, the prompt's among them. Raises Overloaded, TooLarge."""
        self._room.need(tokens, self._request.n)

    def _compiled(self) -> Grammar | None:
        """What every answer must follow."""
        if self._calling is not None and self._calling.choices:
            text = grammar.of_calls(self._calling.choices, self._calling.between)
        elif self._request.json_schema is not None:
            text = grammar.of_schema(self._request.json_schema)
        else:
            return None
        return Grammar(text, self._tokenizer, self._model.get_input_embeddings().num_embeddings, self._ends)

    def _read_prompt(
        self,
    ) -> Generator[Sequence[Event], None, tuple[tuple[Tensor, Any], tuple[str, tuple[TokenLogprob, ...]] | None]]:
        """Logits (vocabulary,) and cache after the prompt, and what is echoed of it."""
        tokens = self._prompt.tokens
        if self._is_pair:
            ids = torch.tensor([tokens], device=self._model.device)  # (1, T)
            self._before_pass()
            self._encoded = self._model.get_encoder()(input_ids=ids)
            logits, cache = self.forward(self._start, None, keep=1)
            return (logits[-1], cache), (self._decode(tokens), ()) if self._request.echo else None
        wants_logprobs = self._request.echo and self._request.logprobs is not None
        told = [TokenLogprob(self._decode(tokens[:1]), None, id=tokens[0])] if wants_logprobs else []
        if self._unread.logits is not None:
            last, cache = self._unread.logits, self._unread.cache
            self._unread.cache = None  # it lies in the memory of all that were read with it
        else:
            size, cache = PIECE if self._reads_pieces else len(tokens), None
            for start in range(0, len(tokens), size):
                if start:
                    yield ()
                piece = tokens[start : start + size]
                logits, cache = self.forward(piece, cache, keep=len(piece) if wants_logprobs else 1)
                last = logits[-1]
                if wants_logprobs:
                    following = tokens[start + 1 : start + 1 + len(piece)]
                    told += [self._logprob(logits[at], token) for at, token in enumerate(following)]
        return (last, cache), (self._decode(tokens), tuple(told)) if self._request.echo else None

    def _answer(self, index: int, first: tuple[Tensor, Any]) -> _Answer:
        sampling = self._request.sampling
        seed = secrets.randbits(63) if sampling.seed is None else (sampling.seed + index) % (1 << 63)
        logits, cache = first
        sampler = Sampler(sampling, seed, logits.device, logits.shape[-1], self._prompt.tokens)
        follower = None if self._grammar is None else self._grammar.follower()
        reader = None if self._calling is None else self._calling.reader()
        answer = _Answer(index, sampler, Detokeniser(self._decode), StopTexts(self._request.stop), follower, reader)
        answer.logits = logits
        answer.cache = copy.deepcopy(cache) if index + 1 < self._request.n else cache
        answer.length = len(self._prompt.tokens)
        answer.adapter = self._adapter
        return answer

    def _advance(self, answer: _Answer) -> list[Event]:
        """One token more for `answer`."""
        if len(answer.tokens) >= self._prompt.max_tokens:
            return self._finish(answer, "length")
        logits = self._next_logits(answer)
        follower = answer.follower
        token = answer.sampler.choose(logits if follower is None else follower.allowed(logits))
        answer.tokens.append(token)
        if token in self._ends:
            return self._finish(answer, "stop")
        self.make_room(answer.length + 1)
        if follower is not None:
            follower.take(token)
        text = answer.stops.push(answer.detokeniser.push(token))
        logprobs = () if self._request.logprobs is None else (self._logprob(logits, token),)
        events = _told(answer, [text] if answer.reader is None else answer.reader.push(text), logprobs)
        if answer.stops.is_found or (follower is not None and follower.is_complete):
            events += self._finish(answer, "stop")
        elif len(answer.tokens) == self._prompt.max_tokens:
            events += self._finish(answer, "length")
        return events

    def _finish(self, answer: _Answer, reason: str) -> list[Event]:
        """The rest of the text, which may still hold a stop text, and the end."""
        text = "" if answer.stops.is_found else answer.stops.push(answer.detokeniser.flush())
        reason = "stop" if answer.stops.is_found else reason
        text += answer.stops.flush()
        rest = [text] if answer.reader is None else [*answer.reader.push(text), *answer.reader.flush()]
        return [*_told(answer, rest), Finished(answer.index, reason, len(answer.tokens), by_text=answer.stops.is_found)]

    def _next_logits(self, answer: _Answer) -> Tensor:
        if answer.logits is None:
            # a model without a cache reads everything again
            unread = answer.tokens[-1:] if answer.cache is not None else self._start + answer.tokens
            logits, answer.cache = self.forward(unread, answer.cache, keep=1)
            answer.length += 1
            return logits[-1]
        logits, answer.logits = answer.logits, None
        return logits

    @property
    def _start(self) -> list[int]:
        """What an answer goes on from, read again by a model without a cache: the prompt, or a decoder's beginning."""
        if not self._is_pair:
            return self._prompt.tokens
        config, own = self._model.config, self._model.generation_config
        start = getattr(own, "decoder_start_token_id", None)
        start = getattr(config, "decoder_start_token_id", None) if start is None else start
        return [getattr(config, "bos_token_id", 0) if start is None else start]

    def forward(self, tokens: Sequence[int], cache: Any, keep: int) -> tuple[Tensor, Any]:
        """Logits of the last `keep` tokens or more, (kept, vocabulary), and the cache to go on with."""
        self._before_pass()
        logits, cache = self.forward_rows(tokens, cache, keep, 1)
        return logits[0], cache

    def forward_rows(self, tokens: Sequence[int], cache: Any, keep: int, rows: int) -> tuple[Tensor, Any]:
        """As `forward`, of so many rows that all read these tokens: (rows, kept, vocabulary). Whoever calls has said
        what each row goes through."""
        options = {"logits_to_keep": keep} if self._has_logits_to_keep else {}
        ids = torch.tensor([tokens], device=self._model.device).expand(rows, -1)  # (rows, T)
        if self._is_pair:
            given: dict[str, Any] = {"decoder_input_ids": ids, "encoder_outputs": self._encoded}
        else:
            given = {"input_ids": ids, **options}
        output = self._model(**given, **{self._cache_name: cache}, use_cache=True)
        # virtual tokens come before the text's own
        return output.logits[:, -len(tokens) :], getattr(output, self._cache_name, None)

    def _logprob(self, logits: Tensor, token: int) -> TokenLogprob:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        count = min(self._request.logprobs or 0, logprobs.shape[-1])
        values, tokens = logprobs.topk(count)
        values = values.clamp(min=LEAST_LOGPROB)
        top = [(self._decode([int(one)]), float(value)) for one, value in zip(tokens, values, strict=True)]
        return TokenLogprob(
            self._decode([token]), max(float(logprobs[token]), LEAST_LOGPROB), top, token, tokens.tolist()
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        if self._hidden is not None:
            tokens = [token for token in tokens if token not in self._hidden]
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=self._hidden is None, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def _told(answer: _Answer, pieces: Sequence[Piece], logprobs: tuple[TokenLogprob, ...] = ()) -> list[Event]:
    """Pieces of an answer as events; the log probabilities go with its text, and where there is none, alone."""
    events: list[Event] = []
    for piece in pieces:
        if not isinstance(piece, str):
            events.append(Called(answer.index, piece.number, piece.name, piece.arguments))
        elif piece or logprobs:
            events.append(Delta(answer.index, piece, logprobs))
            logprobs = ()
    return [*events, Delta(answer.index, "", logprobs)] if logprobs else events


def _hidden(tokenizer: Any, calling: Calling | None) -> frozenset[int] | None:
    """The special tokens that are no text, where some are; None where none is."""
    if calling is None:
        return None
    special = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    seen = special.values() if calling.seen is None else calling.seen
    return frozenset(token for token, text in special.items() if text not in seen)


def end_tokens(loaded: Loaded) -> frozenset[int]:
    """Tokens that end an answer, as the generation configuration and the tokenizer say."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    own = getattr(loaded.tokenizer, "eos_token_id", None)
    return frozenset(token for token in (*listed, own) if isinstance(token, int))
