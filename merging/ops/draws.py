"""Random numbers that belong to a seed, a patch and a tensor: equal ones in any order, on any device and thread.

A counter-based generator is keyed by sha256 over the three, so nothing drawn elsewhere moves what is drawn here.
The generator is Philox4x64-10, whose stream of raw words numpy promises to keep. Source: Salmon et al., SC 2011.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.ops.selection import bits
from adapterhub.merging.ops.sparsify import NORMS, keep_ranked, probabilities, rescaled, restoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from adapterhub.merging.registry import MergeSite, Piece, Pieces

WORD = 1 << 32

_BLOCK = 8
"""Words that one step of the generator's counter gives."""

Array = np.ndarray[Any, np.dtype[Any]]


def words(seed: int, digest: str, name: str, count: int) -> torch.Tensor:
    """`count` equally likely whole numbers from 0 to 2^32 - 1, (count,) int64, on the CPU."""
    import torch

    return torch.from_numpy(raw_words(seed, digest, name, 0, count).astype(np.int64))


def raw_words(seed: int, digest: str, name: str, start: int, stop: int) -> Array:
    """Words start..stop of what `words` gives, uint32, without those before them."""
    key = hashlib.sha256(f"{seed}\0{digest}\0{name}".encode()).digest()[:16]
    block = start // _BLOCK
    philox = np.random.Philox(key=np.frombuffer(key, "<u8").copy(), counter=block)
    raw: Array = philox.random_raw((stop - block * _BLOCK + 1) // 2).astype("<u8", copy=False).view("<u4")
    return raw[start - block * _BLOCK : stop - block * _BLOCK]


def chosen(probability: torch.Tensor | float, seed: int, digest: str, name: str, like: torch.Tensor) -> torch.Tensor:
    """Which entries of `like` are drawn: true with their probability, a bool tensor of its shape and device.

    probability: in [0, 1], one number or a tensor of that shape; known to 2^-32.
    """
    drawn = words(seed, digest, name, like.numel()).view(like.shape).to(like.device)
    if isinstance(probability, float):
        return drawn < round(probability * WORD)
    return drawn < (probability.double() * WORD).round()


def keep_random(delta: torch.Tensor, density: float, rescale: str, seed: int, digest: str, name: str) -> torch.Tensor:
    """The tensor with each entry kept with probability `density` and brought back to size; a new tensor.

    density in (0, 1]: 1 keeps all. rescale: one of `sparsify.RESCALES`. Source: arXiv:2311.03099 sec. 3.
    """
    if density >= 1:
        return delta.clone()
    kept = delta * chosen(density, seed, digest, name, delta)
    return rescaled(kept, delta, rescale, 1 / density)


def keep_likely(
    delta: torch.Tensor, density: float, epsilon: float, rescale: str, seed: int, digest: str, name: str
) -> torch.Tensor:
    """The tensor with entries kept by `sparsify.keep_ranked`'s probabilities and brought back to size; a new tensor.

    density, epsilon: density 1 keeps all, and otherwise density ± epsilon lies in (0, 1). For "inverse" each entry is
    divided by its own probability. Source: arXiv:2406.11617 sec. 3.
    """
    if density >= 1:
        return delta.clone()
    likely = keep_ranked(delta, density, epsilon)
    kept = delta * chosen(likely, seed, digest, name, delta)
    return rescaled(kept, delta, rescale, (1 / likely).to(delta.dtype))


def keep_each_random(
    deltas: Sequence[torch.Tensor], site: MergeSite, density: float, rescale: str, seed: int
) -> list[torch.Tensor]:
    """`keep_random` of each input's delta at a site, by masks of the input's own."""
    return [
        keep_random(delta, density, rescale, seed, digest, site.name)
        for delta, digest in zip(deltas, site.digests, strict=True)
    ]


def keep_each_likely(
    deltas: Sequence[torch.Tensor], site: MergeSite, density: float, epsilon: float, rescale: str, seed: int
) -> list[torch.Tensor]:
    """`keep_likely` of each input's delta at a site, by masks of the input's own."""
    return [
        keep_likely(delta, density, epsilon, rescale, seed, digest, site.name)
        for delta, digest in zip(deltas, site.digests, strict=True)
    ]


def random_pieces(pieces: Pieces, density: float, rescale: str, seed: int) -> Callable[[Piece], Sequence[torch.Tensor]]:
    """What `keep_random` makes of each delta, by pieces."""

    def draw(piece: Piece) -> list[torch.Tensor]:
        for delta, digest in zip(piece.deltas, pieces.digests, strict=True):
            drawn = raw_words(seed, digest, pieces.name, piece.start, piece.start + delta.numel())
            flat = delta.view(-1).numpy()
            np.multiply(flat, _below(drawn, density), out=flat)
            if rescale == "inverse":
                delta.mul_(1 / density)
        return [delta.view(-1) for delta in piece.deltas]

    if density >= 1:
        return lambda piece: [delta.view(-1) for delta in piece.deltas]
    return draw if rescale in ("inverse", "none") else _restored(pieces, draw, rescale)


def likely_pieces(
    pieces: Pieces, density: float, epsilon: float, rescale: str, seed: int
) -> Callable[[Piece], Sequence[torch.Tensor]]:
    """What `keep_likely` makes of each delta, by pieces."""
    if density >= 1:
        return lambda piece: [delta.view(-1) for delta in piece.deltas]
    size = math.prod(pieces.shape[1:]) if len(pieces.shape) > 1 else math.prod(pieces.shape)
    likely = probabilities(size, density, epsilon)
    limits = (likely * WORD).round().astype(np.uint32)  # below 1, as `check_probabilities` sees to

    def draw(piece: Piece) -> list[torch.Tensor]:
        for delta, digest in zip(piece.deltas, pieces.digests, strict=True):
            flat = delta.view(-1).numpy()
            if not flat.size:
                continue
            ranks = _ranks(bits(delta).reshape(-1, size))
            drawn = raw_words(seed, digest, pieces.name, piece.start, piece.start + delta.numel())
            np.multiply(flat, drawn < limits.take(ranks), out=flat)
            if rescale == "inverse":
                np.multiply(flat, (1 / likely).astype(flat.dtype).take(ranks), out=flat)
        return [delta.view(-1) for delta in piece.deltas]

    return draw if rescale in ("inverse", "none") else _restored(pieces, draw, rescale)


def _below(drawn: Array, probability: float) -> Array:
    limit = round(probability * WORD)
    below: Array = drawn < np.uint32(limit) if limit < WORD else np.ones(len(drawn), bool)
    return below


def _ranks(magnitudes: Array) -> Array:
    """The rank of each entry in its row, 0 the smallest, of equal ones the first, flat.

    magnitudes: (rows, columns) unsigned. Sorted together with their places, which numpy does with vector instructions.
    """
    rows, columns = magnitudes.shape
    if magnitudes.itemsize > 4:
        order = magnitudes.argsort(1, kind="stable") + columns * np.arange(rows)[:, None]
    else:
        places = np.arange(magnitudes.size, dtype=np.uint64).reshape(rows, columns)
        keys = (magnitudes.astype(np.uint64) << np.uint64(32)) | places
        keys.sort(axis=1)
        order = keys & np.uint64(WORD - 1)
    ranks = np.empty(magnitudes.size, np.int32)
    ranks[order.reshape(-1)] = np.tile(np.arange(columns, dtype=np.int32), rows)
    return ranks


def _restored(
    pieces: Pieces, draw: Callable[[Piece], Sequence[torch.Tensor]], how: str
) -> Callable[[Piece], list[torch.Tensor]]:
    """What `draw` keeps, times what brings the norm of each whole delta back."""
    before, after = _Norms(how, len(pieces.digests)), _Norms(how, len(pieces.digests))
    for piece in pieces:
        before.add(piece.deltas)
        after.add(draw(piece))
    factors = [restoring(size, left) for size, left in zip(before.norms(), after.norms(), strict=True)]
    return lambda piece: [kept.mul_(factor) for kept, factor in zip(draw(piece), factors, strict=True)]


class _Norms:
    """The norm of each of several deltas that come in pieces, in float64."""

    def __init__(self, how: str, count: int) -> None:
        self._order = NORMS[how]
        self._sums = [0.0] * count

    def add(self, deltas: Sequence[torch.Tensor]) -> None:
        for number, delta in enumerate(deltas):
            if not delta.numel():
                continue
            if self._order == 1.0:
                self._sums[number] += float(delta.abs().sum(dtype=_float64()))
            elif self._order == 2.0:
                self._sums[number] += float(delta.double().square().sum())
            else:
                self._sums[number] = max(self._sums[number], float(delta.abs().max()))

    def norms(self) -> list[float]:
        return [math.sqrt(one) for one in self._sums] if self._order == 2.0 else self._sums


def _float64() -> torch.dtype:
    import torch

    return torch.float64


def check_probabilities(method: str, density: float, epsilon: float) -> None:
    """Raises InvalidParameter unless density is 1, or density - epsilon and density + epsilon lie between 0 and 1."""
    low, high = density - epsilon, density + epsilon
    if density < 1 and (low <= 0 or high >= 1):
        raise InvalidParameter(
            f"{method}: density {density:g} ± epsilon {epsilon:g} is {low:g} to {high:g}, which are no probabilities; "
            "choose a smaller epsilon"
        )
