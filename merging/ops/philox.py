"""Random numbers by counter: the same bits on every machine, at any place of the stream, in any order.

Philox4x32-10 turns a 64-bit key and a 128-bit counter into four 32-bit words. A stream here is keyed by (seed, name);
word p of its column c is word p mod 4 of counter (p div 4, c). Distributions are exact in integers, so that no
library's logarithm is part of what was trained. Never imports torch.
Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011; its Random123 `philox.h`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counters: Array, key: tuple[int, int], rounds: int = 10) -> Array:
    """uint32 (n, 4) for counters uint32 (n, 4) and a key of two 32-bit words."""
    c0, c1, c2, c3 = (counters[:, column].astype(np.uint64) for column in range(4))
    k0, k1 = key
    for _ in range(rounds):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (second >> _HALF) ^ c1 ^ np.uint64(k0), second & _LOW
        c2, c3 = (first >> _HALF) ^ c3 ^ np.uint64(k1), first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], 1).astype(np.uint32)


@dataclass(frozen=True)
class Stream:
    """The numbers of one (seed, name): as many columns as wanted, each of 2^66 words."""

    key: tuple[int, int]

    @classmethod
    def of(cls, seed: int, name: str) -> Stream:
        """The key is the first 8 bytes of sha256 over the seed, 8 bytes little-endian, and the name in UTF-8."""
        digest = hashlib.sha256((seed & (2**64 - 1)).to_bytes(8, "little") + name.encode()).digest()
        return cls((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")))

    def words(self, start: int, stop: int, column: int = 0) -> Array:
        """Words start..stop of a column, uint32."""
        first = start // 4
        places = np.arange(first, (stop + 3) // 4, dtype=np.uint64)
        counters = np.zeros((places.size, 4), np.uint32)
        counters[:, 0], counters[:, 1] = places & _LOW, places >> _HALF
        counters[:, 2], counters[:, 3] = column & 0xFFFFFFFF, column >> 32
        return philox4x32(counters, self.key).reshape(-1)[start - 4 * first : stop - 4 * first]

    def rademacher(self, start: int, stop: int, column: int = 0) -> Array:
        """+1 or -1, float64: bit p mod 32, the lowest first, of word p div 32; a set bit is +1."""
        first = start // 32
        words = self.words(first, (stop + 31) // 32, column).astype("<u4")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[start - 32 * first : stop - 32 * first]
        return bits.astype(np.float64) * 2.0 - 1.0

    def uniform(self, start: int, stop: int, column: int = 0) -> Array:
        """The 2^24 odd multiples of 2^-24 in (-1, 1), equally likely, float64: 2·(word div 256) + 1 - 2^24 of them."""
        steps = (self.words(start, stop, column) >> np.uint32(8)).astype(np.float64)
        return (2.0 * steps + (1.0 - 2.0**24)) * 2.0**-24

    def permutation(self, size: int, column: int = 0) -> Array:
        """0..size-1 in the order of their 64-bit keys, two words each, the low one first; int64."""
        words = self.words(0, 2 * size, column).astype(np.uint64)
        return np.argsort(words[0::2] | (words[1::2] << _HALF), kind="stable").astype(np.int64)
