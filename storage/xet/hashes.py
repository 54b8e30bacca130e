"""How Xet names chunks, blocks of them (xorbs), and files.

A hash is 32 bytes; all are keyed BLAKE3. Source: huggingface/hub-docs docs/xet/hashing.md; the grouping of the tree,
which that page leaves out, is fixed by huggingface/xet-core aggregated_hashes.rs.
"""

import struct
from collections.abc import Iterable

from blake3 import blake3

from adapterhub.storage.errors import InvalidXet

HASH_BYTES = 32

_DATA_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_RANGE_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")
_FILE_KEY = bytes(HASH_BYTES)

_MEAN_CHILDREN = 4
_MIN_CHILDREN = 3
_MAX_CHILDREN = 2 * _MEAN_CHILDREN + 1


def to_text(raw: bytes) -> str:
    """The 64 hexadecimal digits that name a hash in URLs: each 8 bytes as one little-endian number."""
    return struct.pack(">4Q", *struct.unpack("<4Q", raw)).hex()


def from_text(text: str) -> bytes:
    """The 32 bytes of a hash written by `to_text`. Raises InvalidXet for any other text."""
    try:
        raw = bytes.fromhex(text) if text.isalnum() and text == text.lower() else b""
    except ValueError:
        raw = b""
    if len(raw) != HASH_BYTES:
        raise InvalidXet(f"{text!r} is not a Xet hash; it has 64 lower-case hexadecimal digits")
    return struct.pack(">4Q", *struct.unpack("<4Q", raw))


def chunk_hash(content: bytes | memoryview) -> bytes:
    """The hash of a chunk's uncompressed bytes."""
    return blake3(content, key=_DATA_KEY).digest()


def range_hash(chunk_hashes: bytes) -> bytes:
    """The hash of a run of chunks, given their hashes one after another; who knows it knows every one of them."""
    return blake3(chunk_hashes, key=_RANGE_KEY).digest()


def merkle_root(leaves: Iterable[tuple[bytes, int]]) -> bytes:
    """The root over (chunk hash, uncompressed bytes), which is the hash of a xorb; of one leaf, its own hash.

    Raises InvalidXet when there are no leaves.
    """
    levels: list[_Level] = [_Level()]
    for leaf in leaves:
        _add(levels, 0, leaf)
    for depth, level in enumerate(levels):
        if not level.has_parents and len(level.children) == 1:
            return level.children[0][0]
        if level.children:
            _close(levels, depth)
    raise InvalidXet("a Merkle tree without chunks has no root")


def file_hash(leaves: Iterable[tuple[bytes, int]]) -> bytes:
    """The hash of a file, given (chunk hash, uncompressed bytes) of all its chunks in order. At least one."""
    return blake3(merkle_root(leaves), key=_FILE_KEY).digest()


class _Level:
    """The nodes of one level of the tree that have no parent yet: never more than nine, however large the file."""

    def __init__(self) -> None:
        self.children: list[tuple[bytes, int]] = []
        self.has_parents = False


def _add(levels: list[_Level], depth: int, node: tuple[bytes, int]) -> None:
    """Put a node at the end of its level; close the group where the rule cuts: at most 9, or from the third on a hash
    whose last 8 bytes, as a little-endian number, divide by 4."""
    if depth == len(levels):
        levels.append(_Level())
    children = levels[depth].children
    children.append(node)
    cut = len(children) >= _MIN_CHILDREN and node[0][24] % _MEAN_CHILDREN == 0
    if cut or len(children) == _MAX_CHILDREN:
        _close(levels, depth)


def _close(levels: list[_Level], depth: int) -> None:
    """Give the level's nodes a parent."""
    level = levels[depth]
    text = "".join(f"{to_text(child)} : {size_bytes}\n" for child, size_bytes in level.children)
    parent = blake3(text.encode(), key=_NODE_KEY).digest()
    total = sum(size_bytes for _, size_bytes in level.children)
    level.children = []
    level.has_parents = True
    _add(levels, depth + 1, (parent, total))
