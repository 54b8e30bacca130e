"""Virtual tokens on a live model: in `forward` and in `generate`, with masks, positions, padding and a cache.

A decoder sees the vectors of a prompt before its tokens, at positions 0 … n-1, and everything else n later; an encoder
alike. The cache then holds the virtual tokens too, so every later mask begins with n ones more and positions stay n
later. A prefix is put into the empty cache as keys and values, before the first tokens. Logits of a prompt's virtual
tokens come out first, as with peft; a prefix has none. Imports torch inside functions only.

Differs: peft 0.21 drops the position ids that `generate` makes from a mask, so its left-padded rows come out otherwise
than alone; and with a transformers that calls the cache `cache` it puts the prompt before every token.
Source: peft 0.21 `peft_model.py`; arXiv:2104.08691, arXiv:2101.00190.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import InvalidParameter, NotFoldable
from adapterhub.merging.live import (
    by_name,
    cache_of,
    check_parameters,
    check_shape,
    check_weight,
    hidden_size,
    is_cached,
    model_name,
    override,
    put_parameters,
    tensor,
)
from adapterhub.merging.peft_adapter import Adapter, Tuner, checked
from adapterhub.merging.prompts import EMBEDDINGS, TASK_COLUMNS, TASK_ROWS, check_prefix, submodules

if TYPE_CHECKING:
    import torch

Prompt = Callable[[int, Any], "torch.Tensor"]
"""`(batch, task_ids)` gives the virtual tokens' vectors, (batch, n, d); task_ids is None where none were given."""


Attach = Callable[[Any, Folder, str, float], Callable[[], None]]


def attach_prompt(kind: str, tuner: Tuner) -> Attach:
    """How a prompt that peft saved, of embeddings or of keys and values, goes on a live model."""
    put = _put_keys_values if tuner.check is check_prefix else _put_embeddings

    def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
        adapter = checked(folder, path, tuner)
        check_weight(kind, weight)
        check_parameters(model, adapter.whole)

        def put_all() -> None:
            put(model, adapter)
            put_parameters(model, adapter.whole)

        return live.attach(model, kind, put_all)

    return attach


def _put_embeddings(model: Any, adapter: Adapter) -> None:
    vectors, tasks = adapter.banks[EMBEDDINGS], TASK_ROWS in adapter.banks
    tokens = adapter.config["num_virtual_tokens"]
    weight = embeddings_of(model).weight
    stored = {name: tensor(handle, weight) for name, handle in adapter.banks.items()}

    def whole(batch: int, task_ids: Any) -> Any:
        if not tasks:
            return stored[EMBEDDINGS].expand(batch, -1, -1)
        columns, rows = stored[TASK_COLUMNS][task_ids], stored[TASK_ROWS][task_ids]
        return stored[EMBEDDINGS] * (columns @ rows)  # (batch, n · submodules, d)

    put_prompt(
        model, tokens, vectors.shape[1], lambda batch, task_ids: whole(batch, task_ids)[:, :tokens], takes_tasks=tasks
    )
    if tasks and model.config.is_encoder_decoder and submodules(adapter.config) == 2:
        put_decoder_prompt(model, tokens, lambda batch, task_ids: whole(batch, task_ids)[:, tokens:])


def _put_keys_values(model: Any, adapter: Adapter) -> None:
    """Rows are tokens; a row holds keys and values by layer. An encoder-decoder reads the rows twice, by fours.

    peft lays them out as (keys, values, cross keys, cross values) of each layer, the whole repeated once, and drops the
    cross-attention's. Source: peft_model.py, get_prompt.
    """
    config = adapter.config
    n, depth, heads = (config[name] for name in ("num_virtual_tokens", "num_layers", "num_attention_heads"))
    weight = embeddings_of(model).weight
    flat = tensor(adapter.banks[EMBEDDINGS], weight).to(weight.dtype)
    halves = flat.view(n, depth * 2, heads, -1).permute(1, 2, 0, 3)  # (2 · layers, heads, n, width)
    step = 4 if submodules(config) == 2 else 2
    places = [step * layer % (2 * depth) for layer in range(depth)]
    put_prefix(model, [(halves[place], halves[place + 1]) for place in places])


# ---- what prompts do -------------------------------------------------------------------------------------------------


def put_prompt(model: Any, tokens: int, width: int, prompt: Prompt, *, takes_tasks: bool = False) -> None:
    """Let `model` see `tokens` vectors of that width before its own tokens.

    An encoder-decoder sees them in its encoder. takes_tasks: `forward` and `generate` take task_ids, one a row.
    """
    embeddings = embeddings_of(model)
    check_shape(model, "prompt_embeddings", (tokens, width), (tokens, int(embeddings.weight.shape[1])))
    before = _Before(embeddings, tokens, prompt, takes_tasks)
    extra = ("task_ids",) if takes_tasks else ()
    if not model.config.is_encoder_decoder:
        override(model, "forward", before.decoder, extra=extra)
        return
    override(model.get_encoder(), "forward", before.encoder, extra=extra)
    override(model, "forward", before.pair, extra=extra)


def put_decoder_prompt(model: Any, tokens: int, prompt: Prompt) -> None:
    """Let the decoder of an encoder-decoder see vectors before its tokens too, in a forward pass of the whole.

    As in peft, `generate` does not do so: it hands the decoder an encoder's outputs.
    """
    before = _Before(embeddings_of(model), tokens, prompt, takes_tasks=True)
    override(model, "forward", before.target, extra=("task_ids",))


def put_prefix(model: Any, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Let the model's cache begin with keys and values: for each layer a pair of (heads, n, width of a head).

    An encoder-decoder has them in the self-attention of its decoder.
    """
    embeddings_of(model)
    if "cache" not in _parameters(model) and "past_key_values" not in _parameters(model):
        raise NotFoldable(f"{model_name(model)}: takes no cache, which a prefix is a part of")
    config = model.config.get_text_config(decoder=True)
    depth = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if getattr(config, "new_decoder_architecture", None) is not None:  # Falcon caches keys for every query head, or one
        is_single = config.multi_query and not config.new_decoder_architecture
        heads = 1 if is_single else config.num_attention_heads
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    width = width or hidden_size(model) // config.num_attention_heads
    n = int(layers[0][0].shape[1])
    check_shape(model, "prompt_embeddings", (len(layers), *layers[0][0].shape), (depth, heads, n, width))
    override(model, "forward", _Prefix(model, layers, n).forward)


def _parameters(model: Any) -> set[str]:
    return set(signature(model.forward).parameters)


def embeddings_of(model: Any) -> Any:
    """The module that embeds tokens. Raises NotFoldable for a model that takes none, such as one of sounds."""
    from torch.nn import Embedding

    inner = model.get_encoder() if model.config.is_encoder_decoder else model
    is_text = "inputs_embeds" in _parameters(inner) and "input_ids" in _parameters(inner)
    found = model.get_input_embeddings() if is_text else None
    if not isinstance(found, Embedding):
        raise NotFoldable(f"{model_name(model)}: takes no tokens, so there is nothing that virtual tokens come before")
    return found


class _Before:
    """The vectors before a model's tokens; its methods stand in for `forward`."""

    def __init__(self, embeddings: Any, tokens: int, prompt: Prompt, takes_tasks: bool) -> None:
        self.embeddings, self.tokens, self.prompt, self.takes_tasks = embeddings, tokens, prompt, takes_tasks
        self.is_inside = False

    def decoder(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A model without an encoder of its own, or an encoder alone."""
        given = by_name(original, args, kwargs)
        tasks = given.pop("task_ids", None)
        given.pop("cache_position", None)  # of older transformers, which make it from the cache when it is missing
        if is_cached(given):
            _mask(given, "attention_mask", self.tokens)
            if given.get("position_ids") is not None:
                given["position_ids"] = given["position_ids"] + self.tokens
            return original(**given)
        self._embed(given, tasks)
        return original(**given)

    def encoder(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """An encoder that `generate` calls by itself; inside the whole model's pass its inputs are complete."""
        given = by_name(original, args, kwargs)
        tasks = given.pop("task_ids", None)
        if not self.is_inside:
            self._embed(given, tasks)
        return original(**given)

    def pair(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """An encoder with a decoder, which looks at the encoder's outputs through the same mask."""
        given = by_name(original, args, kwargs)
        tasks = given.pop("task_ids", None)
        if given.get("encoder_outputs") is not None:
            _mask(given, "attention_mask", self.tokens)
            return original(**given)
        self._embed(given, tasks)
        self.is_inside = True
        try:
            return original(**given)
        finally:
            self.is_inside = False

    def target(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The decoder of a pair, when the whole model is called at once."""
        given = by_name(original, args, kwargs)
        ids, embeds = given.get("decoder_input_ids"), given.get("decoder_inputs_embeds")
        if given.get("encoder_outputs") is None and not is_cached(given) and (ids is not None or embeds is not None):
            embeds = self.embeddings(ids) if embeds is None else embeds
            given.pop("decoder_input_ids", None)
            given["decoder_inputs_embeds"] = self._joined(embeds, given.get("task_ids"))
            _mask(given, "decoder_attention_mask", self.tokens)
            _labels(given, self.tokens)
        return original(**given)

    def _joined(self, embeds: Any, tasks: Any) -> Any:
        import torch

        if self.takes_tasks and tasks is None:
            raise InvalidParameter("this patch has a prompt for each task: task_ids, one a row, must be given")
        return torch.cat([self.prompt(len(embeds), tasks).to(embeds), embeds], dim=1)  # (batch, n + tokens, d)

    def _embed(self, given: dict[str, Any], tasks: Any) -> None:
        import torch

        embeds = given.get("inputs_embeds")
        embeds = self.embeddings(given.get("input_ids")) if embeds is None else embeds
        given.pop("input_ids", None)
        given["inputs_embeds"] = self._joined(embeds, tasks)
        _mask(given, "attention_mask", self.tokens)
        if "decoder_input_ids" not in given:
            _labels(given, self.tokens)
        if given.get("token_type_ids") is not None:
            kinds = given["token_type_ids"]
            given["token_type_ids"] = torch.cat([kinds.new_zeros(len(kinds), self.tokens), kinds], dim=1)
        if given.get("position_ids") is not None:
            own = given["position_ids"]
            first = torch.arange(self.tokens, device=own.device, dtype=own.dtype).expand(len(own), -1)
            given["position_ids"] = torch.cat([first, own + self.tokens], dim=1)


class _Prefix:
    """Keys and values at the beginning of a cache; `forward` stands in for the model's."""

    def __init__(self, model: Any, layers: Sequence[tuple[Any, Any]], tokens: int) -> None:
        self.layers, self.tokens, self.is_pair = layers, tokens, model.config.is_encoder_decoder
        self.name = "cache" if "cache" in _parameters(model) else "past_key_values"
        self.mask = "decoder_attention_mask" if self.is_pair else "attention_mask"

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = by_name(original, args, kwargs)
        is_kept = cache_of(given) is not None or given.get("use_cache") is not False
        if not is_cached(given):
            given[self.name] = self._filled(cache_of(given), given)
        _mask(given, self.mask, self.tokens)
        for name in ("position_ids", "cache_position"):
            if given.get(name) is not None and not self.is_pair:
                given[name] = given[name] + self.tokens
        found = original(**given)
        if is_kept or not isinstance(found, Mapping):
            return found
        # Nobody asked for a cache, and generate would go on with it.
        kept: dict[str, Any] = {name: one for name, one in found.items() if name != self.name}
        return type(found)(**kept)

    def _filled(self, cache: Any, given: dict[str, Any]) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache

        names: tuple[str, ...] = ("input_ids", "inputs_embeds")
        if self.is_pair:
            names = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
        batch = len(next(given[name] for name in names if given.get(name) is not None))
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if self.is_pair else DynamicCache()
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        for number, (keys, values) in enumerate(self.layers):
            own.update(keys.expand(batch, *keys.shape), values.expand(batch, *values.shape), number)
        return cache


def _mask(given: dict[str, Any], name: str, tokens: int) -> None:
    """Put ones before a mask that was given. Raises InvalidParameter for one that is no (batch, tokens)."""
    import torch

    mask = given.get(name)
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        raise InvalidParameter(f"{name}: a mask (batch, tokens) is needed with virtual tokens; use a dynamic cache")
    given[name] = torch.cat([mask.new_ones(len(mask), tokens), mask], dim=1)


def _labels(given: dict[str, Any], tokens: int) -> None:
    import torch

    labels = given.get("labels")
    if labels is not None and labels.dim() == 2:
        given["labels"] = torch.cat([labels.new_full((len(labels), tokens), -100), labels], dim=1)
