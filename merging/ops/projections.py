"""Random projections from a few numbers to many: what an intrinsic-dimension patch stores is d numbers and a seed.

The same bits on every machine: sums run in a fixed order in float64, and the result is rounded once to float32.
Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adapterhub.merging.ops.philox import Array, Stream


@dataclass(frozen=True)
class FastfoodBlock:
    """What one block of a Fastfood projection is made of. B, G (p,): diagonals; permutation (p,): of the entries."""

    B: Array
    permutation: Array
    G: Array


def _draw(stream: Stream, distribution: str) -> Callable[[int, int, int], Array]:
    return stream.rademacher if distribution == "rademacher" else stream.uniform


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()


def fastfood_block(stream: Stream, number: int, size: int, distribution: str) -> FastfoodBlock:
    """Block `number` for `size` padded coefficients: columns 3·number of the stream and the two after it."""
    B = stream.rademacher(0, size, 3 * number)
    permutation = stream.permutation(size, 3 * number + 1)
    return FastfoodBlock(B, permutation, _draw(stream, distribution)(0, size, 3 * number + 2))


def hadamard_transform(x: Array) -> Array:
    """H·x for the Walsh-Hadamard matrix of ±1 in natural order; x float64 (2^k,), not modified."""
    x = x.copy()
    size, half = x.size, 1
    while half < size:
        pairs = x.reshape(-1, 2, half)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
        half *= 2
    return x


def fastfood(theta: Array, numel: int, stream: Stream, distribution: str) -> Array:
    """H·G·Π·H·B·θ / p for θ padded to p = 2^k, block after block until there are numel entries; float32.

    With G of ±1 each whole block has orthonormal columns. Source: Le et al., Fastfood, ICML 2013 eq. 7;
    arXiv:1804.08838 sec. S7; arXiv:2012.13255.
    """
    size = padded(theta.size)
    x = np.zeros(size)
    x[: theta.size] = theta
    result = np.empty(numel, np.float32)
    for number, start in enumerate(range(0, numel, size)):
        block = fastfood_block(stream, number, size, distribution)
        y = hadamard_transform(block.G * hadamard_transform(block.B * x)[block.permutation]) / size
        result[start : start + size] = y[: numel - start]
    return result


def dense(theta: Array, numel: int, stream: Stream, distribution: str) -> Array:
    """P·θ with a whole random matrix P (numel, d), whose column j is the stream's column j; float32.

    Source: arXiv:1804.08838 sec. 2.
    """
    draw = _draw(stream, distribution)
    result = np.empty(numel, np.float32)
    for start in range(0, numel, _PIECE):
        stop = min(numel, start + _PIECE)
        total = np.zeros(stop - start)
        for column, coefficient in enumerate(theta):  # one after another, in an order that no BLAS may choose
            total += draw(start, stop, column) * coefficient
        result[start:stop] = total
    return result


def fastfood_transposed(gradient: Array, count: int, stream: Stream, distribution: str) -> Array:
    """Pᵀ·g of `fastfood`'s P for a gradient g (numel,) of any float dtype; float64 (count,)."""
    size = padded(count)
    total = np.zeros(size)
    for number, start in enumerate(range(0, gradient.size, size)):
        piece = np.zeros(size)
        piece[: min(size, gradient.size - start)] = gradient[start : start + size]
        block = fastfood_block(stream, number, size, distribution)
        z = np.empty(size)
        z[block.permutation] = block.G * hadamard_transform(piece)
        total += block.B * hadamard_transform(z) / size
    return total[:count]


def dense_transposed(gradient: Array, count: int, stream: Stream, distribution: str) -> Array:
    """Pᵀ·g of `dense`'s P for a gradient g (numel,) of any float dtype; float64 (count,)."""
    draw = _draw(stream, distribution)
    wide = gradient.astype(np.float64)
    return np.array([draw(0, wide.size, column) @ wide for column in range(count)])


_PIECE = 1 << 20

PROJECTIONS: Mapping[str, Callable[[Array, int, Stream, str], Array]] = {"fastfood": fastfood, "dense": dense}
"""By name: `(theta float64 (d,), numel, stream, distribution)` gives float32 (numel,)."""

TRANSPOSED: Mapping[str, Callable[[Array, int, Stream, str], Array]] = {
    "fastfood": fastfood_transposed,
    "dense": dense_transposed,
}
"""The same matrices the other way round: `(gradient (numel,), d, stream, distribution)` gives float64 (d,)."""

DISTRIBUTIONS = ("rademacher", "uniform")
