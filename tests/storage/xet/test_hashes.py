"""Xet hashes against published examples, and the tree's rule against its definition over lists."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet import hashes


def test_the_text_of_a_hash_reverses_each_eight_bytes() -> None:
    raw = bytes(range(32))
    assert hashes.to_text(raw) == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
    assert hashes.from_text(hashes.to_text(raw)) == raw


@pytest.mark.parametrize("text", ["", "00", "0" * 63, "G" * 64, "A" * 64, "0" * 65, " " + "0" * 63, "é" * 64])
def test_other_text_is_no_hash(text: str) -> None:
    with pytest.raises(InvalidXet, match="64 lower-case"):
        hashes.from_text(text)


def test_one_chunk_is_its_own_root() -> None:
    leaf = (hashes.chunk_hash(b"alone"), 5)
    assert hashes.merkle_root([leaf]) == leaf[0]
    assert hashes.file_hash([leaf]) != leaf[0]


def test_no_chunks_have_no_root() -> None:
    with pytest.raises(InvalidXet, match="without chunks"):
        hashes.merkle_root([])


def _root_by_lists(nodes: list[tuple[bytes, int]]) -> bytes:
    """The definition, level by level over whole lists, which needs memory for all leaves."""
    while len(nodes) > 1:
        parents, rest = [], nodes
        while rest:
            cuts = [i + 1 for i in range(2, min(9, len(rest))) if int.from_bytes(rest[i][0][24:], "little") % 4 == 0]
            size = len(rest) if len(rest) <= 2 else min([*cuts, 9, len(rest)])
            text = "".join(f"{hashes.to_text(h)} : {n}\n" for h, n in rest[:size])
            parents.append((blake3(text.encode(), key=hashes._NODE_KEY).digest(), sum(n for _, n in rest[:size])))
            rest = rest[size:]
        nodes = parents
    return nodes[0][0]


@given(st.integers(1, 700), st.integers(0, 2**32))
def test_the_streamed_tree_is_the_tree_over_lists(count: int, seed: int) -> None:
    leaves = [(hashes.chunk_hash(f"{seed}/{n}".encode()), n) for n in range(count)]
    assert hashes.merkle_root(iter(leaves)) == _root_by_lists(leaves)
