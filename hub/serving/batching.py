"""Computes several answers in one pass of the model: the weights are read once for all of them.

Answers come and go between two steps. Their keys and values lie in one cache, each right-aligned in its row, the places
before it masked; positions are each answer's own. Prompts that wait at the same time are read together likewise.
Imports torch: only an engine's process loads this.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from adapterhub.hub.serving.mixture import Adapter, Mixture
from adapterhub.hub.serving.rooms import room_of

GROWTH = 64
"""Tokens by which the room of a joint cache grows at a time."""
MOST_ROWS = 64
"""Answers in one pass; more take turns."""
MOST_READ = 4096
"""Tokens of prompts, and of what fills them up to one length, that are read together."""


class Row(Protocol):
    """An answer that waits for its next logits.

    tokens: generated so far, of which the last is unread. length: tokens read. cache: its own, of one row, while it is
    in no batch. logits: where the next ones are put, (vocabulary,).
    """

    tokens: list[int]
    length: int
    cache: Any
    batch: "Batch | None"
    logits: Tensor | None
    adapter: Adapter | None


class Prompt(Protocol):
    """A prompt that nobody has read yet: of its last token the logits (vocabulary,), and the cache are put there."""

    tokens: Sequence[int]
    adapter: Adapter | None
    logits: Tensor | None
    cache: Any


class Batches:
    """All that decode under one set of weights: in one pass those whose lengths have the same power of two, so that
    nobody is filled up to more than twice its length. For the one thread that computes."""

    def __init__(self, model: Any, mixture: Mixture | None = None) -> None:
        """mixture: where the rows go through adapters of their own."""
        self._model = model
        self._mixture = mixture
        self._batches: dict[int, Batch] = {}

    def read(self, prompts: Sequence[Prompt]) -> None:
        """As `Batch.read`."""
        Batch(self._model, self._mixture).read(prompts)

    def passes(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of each pass: at most MOST_ROWS, and none for a row that decodes as well by itself.

        rows: all that wait. Those that have outgrown their batch leave it; caches in which none of them is are
        forgotten.
        """
        sizes: dict[int, list[Row]] = {}
        for row in rows:
            size = room_of(row.length + 1)
            if row.batch is not None and row.batch is not self._batches.get(size):
                row.batch.let_go(row)
            sizes.setdefault(size, []).append(row)
        used = {id(row.batch) for row in rows}
        self._batches = {size: batch for size, batch in self._batches.items() if id(batch) in used}
        # nobody who is in a batch is left out of it
        found = [sorted(some, key=lambda row: row.batch is None)[:MOST_ROWS] for some in sizes.values()]
        return [some for some in found if len(some) > 1 or some[0].batch is not None]

    def advance(self, rows: Sequence[Row]) -> None:
        """Compute the next logits of the rows of one of those passes."""
        size = room_of(rows[0].length + 1)
        self._batches.setdefault(size, Batch(self._model, self._mixture)).advance(rows)


class Batch:
    """The answers that decode in one pass. For the one thread that computes."""

    def __init__(self, model: Any, mixture: Mixture | None = None) -> None:
        """mixture: where the rows go through adapters of their own."""
        self._model = model
        self._mixture = mixture
        self._cache_name = cache_name(model)
        self._keeps_logits = keeps_logits(model)
        self._rows: list[Row] = []
        self._cache: Any = None

    def read(self, prompts: Sequence[Prompt]) -> None:
        """Compute what follows every prompt, see `alike`."""
        device = self._model.device
        lengths = [len(prompt.tokens) for prompt in prompts]
        size = max(lengths)
        ids = torch.tensor([[0] * (size - len(one.tokens)) + list(one.tokens) for one in prompts], device=device)
        places = torch.arange(size, device=device) - (size - torch.tensor(lengths, device=device))[:, None]
        if self._mixture is not None:
            self._mixture.use([prompt.adapter for prompt in prompts], size)
        cache = DynamicCache(config=self._model.config)
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self._model(
            input_ids=ids,
            attention_mask=(places >= 0).long(),  # (rows, size): everybody's last token is at the end
            position_ids=places.clamp(min=0),
            use_cache=True,
            **{self._cache_name: cache},
            **options,
        )
        for number, prompt in enumerate(prompts):
            prompt.logits = output.logits[number, -1]
            prompt.cache = _row(cache, number, lengths[number])

    def advance(self, rows: Sequence[Row]) -> None:
        """Compute the next logits of every row."""
        if len(self._rows) != len(rows) or any(a is not b for a, b in zip(self._rows, rows, strict=True)):
            self._join(rows)
        device = self._model.device
        lengths = torch.tensor([row.length for row in rows], device=device)
        size = int(lengths.max())
        places = torch.arange(size + 1, device=device)
        mask = (places >= (size - lengths)[:, None]).long()  # (rows, size + 1): the new token is everybody's last
        if self._mixture is not None:
            self._mixture.use([row.adapter for row in rows], 1)
        output = self._model(
            input_ids=torch.tensor([row.tokens[-1:] for row in rows], device=device),
            attention_mask=mask,
            position_ids=lengths[:, None],
            use_cache=True,
            **{self._cache_name: self._cache},
        )
        for number, row in enumerate(rows):
            row.logits = output.logits[number, -1]
            row.length += 1

    def let_go(self, row: Row) -> None:
        """Give a row of this batch a cache of its own."""
        row.cache, row.batch = _row(self._cache, self._number(row), row.length), None

    def _number(self, row: Row) -> int:
        return next(number for number, one in enumerate(self._rows) if one is row)

    def _join(self, rows: Sequence[Row]) -> None:
        """Let the cache hold these rows, in this order."""
        before, old = self._cache, {id(row): number for number, row in enumerate(self._rows)}
        layers = before.layers if before is not None else rows[0].cache.layers
        size = max(row.length for row in rows)
        joint = DynamicCache()
        joint.layers = []
        for number in range(len(layers)):
            parts = []
            for row in rows:
                if row.batch is self:
                    at = old[id(row)]
                    parts.append((before.layers[number].keys[at], before.layers[number].values[at]))
                else:
                    own = row.cache.layers[number]
                    parts.append((own.keys[0], own.values[0]))
            joint.layers.append(_Layer(parts, [row.length for row in rows], size))
            if before is not None:
                before.layers[number] = None  # its memory goes layer by layer
        for row in rows:
            row.cache, row.batch = None, self
        self._cache, self._rows = joint, list(rows)


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of several rows, with room to grow: (rows, heads, tokens, width) each."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], size: int) -> None:
        """parts: of each row (heads, tokens, width), of which the last `length` tokens are its own."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self.dtype, self.device = parts[0][0].dtype, parts[0][0].device
        self._size = size
        self._room = [_roomy([part[which] for part in parts], lengths, size) for which in (0, 1)]
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = key_states.shape[-2]
        if self._size + new > self._room[0].shape[-2]:
            self._room = [_longer(one) for one in self._room]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, self._size : self._size + new] = states
        self._size += new
        return self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (room[:, :, : self._size] for room in self._room)
        self.keys, self.values = keys, values
        return keys, values


def _roomy(parts: Sequence[Tensor], lengths: Sequence[int], size: int) -> Tensor:
    heads, _, width = parts[0].shape
    room = parts[0].new_zeros(len(parts), heads, size + GROWTH, width)
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        room[number, :, size - length : size] = part[:, part.shape[1] - length :]
    return room


def _longer(room: Tensor) -> Tensor:
    rows, heads, tokens, width = room.shape
    longer = room.new_zeros(rows, heads, tokens + GROWTH, width)
    longer[:, :, :tokens] = room
    return longer


def _row(cache: Any, number: int, length: int) -> Any:
    """One row's cache of its own, over the memory of the joint one."""
    own = DynamicCache()
    own.layers = []
    for layer in cache.layers:
        part: Any = DynamicLayer()  # type: ignore[no-untyped-call]
        part.dtype, part.device, part.is_initialized = layer.keys.dtype, layer.keys.device, True
        part.keys, part.values = (
            states[number : number + 1, :, states.shape[-2] - length :] for states in (layer.keys, layer.values)
        )
        own.layers.append(part)
    return own


def alike(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of the prompts that are read with the first: as long as it within a factor of two, and not too many."""
    first = len(prompts[0].tokens)
    found: list[Prompt] = []
    longest = first
    for prompt in prompts[:MOST_ROWS]:
        size = max(longest, len(prompt.tokens))
        if first <= 2 * len(prompt.tokens) <= 4 * first and (size * (len(found) + 1) <= MOST_READ or not found):
            found.append(prompt)
            longest = size
    return found


def keeps_logits(model: Any) -> bool:
    """Whether a model can be told of how many tokens the logits are wanted."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def reads_rows(model: Any) -> bool:
    """Whether a model can read several prompts together: as `takes_rows`, and its cache `is_joinable`."""
    makes_default = getattr(model, "_supports_default_dynamic_cache", lambda: False)
    return takes_rows(model) and makes_default() and is_joinable(DynamicCache(config=model.config))


def cache_name(model: Any) -> str:
    """What a model's forward, and its output, call the cache: transformers renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def takes_rows(model: Any) -> bool:
    """Whether a model can decode rows of different lengths together: it is told positions and what to leave out."""
    parameters = inspect.signature(model.forward).parameters
    needed = ("input_ids", "attention_mask", "position_ids", cache_name(model))
    return all(name in parameters for name in needed) and not model.config.is_encoder_decoder


def is_joinable(cache: Any) -> bool:
    """Whether a cache keeps every token of every layer, and nothing else: no window, no state."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
