"""Memory for what answers remember, counted before it is used: a server that runs out says so, and is not killed.

Imports torch: only an engine's process loads this.
"""

from typing import Any

from adapterhub.hub.serving.pool import Pool

LEAST = 512
"""Tokens for which a row's memory is counted at least."""
ANSWER = 512
"""Tokens of an answer that are counted when it begins; a longer one asks for more on its way."""


def room_of(tokens: int) -> int:
    """The tokens that a row of so many takes where it decodes with others: rows share a cache only with those of the
    same power of two, and each is filled up to the longest."""
    return max(LEAST, 1 << (tokens - 1).bit_length())


def bytes_a_token(model: Any) -> int:
    """Bytes of keys and values of one token in all layers, as the configuration has them; 0 where it does not say.

    More than is used where layers keep a window of tokens alone.
    """
    config = model.config.get_text_config(decoder=True)
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not layers or not heads or not hidden:
        return 0
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or hidden // heads
    of_the_text = 2 if model.config.is_encoder_decoder else 1  # a decoder of pairs keeps keys of what it reads too
    return int(2 * layers * kept * width * model.dtype.itemsize * of_the_text)


class Room:
    """What one request may remember. For one thread at a time."""

    def __init__(self, pool: Pool | None = None, bytes_a_token: int = 0) -> None:
        """pool: where bytes are counted, None for a room without walls."""
        self._pool = pool
        self._bytes_a_token = bytes_a_token
        self._held_bytes = 0

    def need(self, tokens: int, rows: int = 1) -> None:
        """Have room for so many tokens in each of `rows` rows. Raises Overloaded, TooLarge; what there was stays."""
        wanted = room_of(tokens) * rows * self._bytes_a_token
        if self._pool is not None and wanted > self._held_bytes:
            self._pool.reserve(wanted - self._held_bytes)
            self._held_bytes = wanted

    def free(self) -> None:
        """Give everything back."""
        if self._pool is not None and self._held_bytes:
            self._pool.give_back(self._held_bytes)
            self._held_bytes = 0
