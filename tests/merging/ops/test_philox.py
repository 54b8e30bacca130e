"""Philox against the published vectors, its streams against themselves, and projections against what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.ops.philox import Stream, philox4x32
from adapterhub.merging.ops.projections import dense, fastfood, hadamard_transform, padded

KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)
"""Counter, key and output of Random123's `kat_vectors`, "philox4x32 10"."""


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_gives_the_published_words(counter: str, key: str, output: str) -> None:
    words = np.array([[int(word, 16) for word in counter.split()]], np.uint32)
    first, second = (int(word, 16) for word in key.split())
    assert [f"{word:08x}" for word in philox4x32(words, (first, second))[0]] == output.split()


@given(start=st.integers(0, 200), count=st.integers(0, 100), column=st.sampled_from([0, 1, 2**32 + 5]))
def test_a_stream_is_the_same_wherever_it_is_entered(start: int, count: int, column: int) -> None:
    stream = Stream.of(5, "w")
    for draw in (stream.words, stream.rademacher, stream.uniform):
        assert np.array_equal(draw(start, start + count, column), draw(0, 300, column)[start : start + count])


def test_streams_differ_by_seed_name_and_column() -> None:
    streams = [Stream.of(1, "a").words(0, 4), Stream.of(2, "a").words(0, 4), Stream.of(1, "b").words(0, 4)]
    streams.append(Stream.of(1, "a").words(0, 4, 1))
    assert len({words.tobytes() for words in streams}) == 4


def test_the_key_is_the_documented_hash() -> None:
    # sha256(b"\x07" + 7 * b"\x00" + b"w") begins with these eight bytes, little-endian words.
    assert [f"{word:08x}" for word in Stream.of(7, "w").key] == ["4b1c0ca9", "68747031"]


def test_distributions_have_their_moments() -> None:
    stream, n = Stream.of(3, "w"), 1 << 16
    signs, grid = stream.rademacher(0, n), stream.uniform(0, n)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / np.sqrt(n)
    assert abs(grid.mean()) < 5 * np.sqrt(1 / 3 / n)
    assert grid.var() == pytest.approx(1 / 3, rel=0.02)
    assert np.array_equal(grid * 2**24 % 2, np.ones(n))  # the odd multiples of 2^-24


@given(size=st.integers(0, 300), seed=st.integers(0, 2**63 - 1))
def test_a_permutation_has_every_place_once(size: int, seed: int) -> None:
    assert sorted(Stream.of(seed, "w").permutation(size).tolist()) == list(range(size))


def test_the_transform_is_its_own_inverse_times_its_size() -> None:
    x = np.random.default_rng(0).normal(size=64)
    assert np.allclose(hadamard_transform(hadamard_transform(x)), 64 * x, rtol=1e-13)


def test_a_block_of_fastfood_keeps_lengths_and_angles() -> None:
    rng, stream = np.random.default_rng(0), Stream.of(1, "w")
    a, b = rng.normal(size=(2, 16))
    first, second = (fastfood(theta, 16, stream, "rademacher").astype(float) for theta in (a, b))
    assert first @ first == pytest.approx(a @ a, rel=1e-6)
    assert first @ second == pytest.approx(a @ b, rel=1e-6)


@given(d=st.integers(1, 40), numel=st.integers(0, 90))
def test_projections_are_linear_and_of_any_size(d: int, numel: int) -> None:
    theta, stream = np.random.default_rng(d).normal(size=d), Stream.of(2, "w")
    for project in (fastfood, dense):
        once = project(theta, numel, stream, "rademacher")
        assert once.shape == (numel,)
        assert np.array_equal(project(2 * theta, numel, stream, "rademacher"), 2 * once)
    assert padded(d) >= d
