"""Files written in any order: the same bytes and digest as in one piece, in a few blocks of memory."""

import errno
import hashlib
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.merging import blocks
from adapterhub.merging.blocks import BlockFile

BLOCK = 4096
"""Of these tests: a page, so that writes past the cache are as they are with large ones."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(blocks, "UNCACHED_BYTES", 4 * BLOCK)


def cuts(draw: random.Random, size_bytes: int, count: int) -> list[tuple[int, int]]:
    """Some of the ranges that as many cuts make of a file, in any order."""
    edges = sorted({0, size_bytes, *(draw.randrange(size_bytes + 1) for _ in range(count))})
    ranges = [one for one in pairwise(edges) if draw.random() < 0.9]
    draw.shuffle(ranges)
    return ranges


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), size_bytes=st.integers(0, 40 * BLOCK), threads=st.integers(1, 3))
def test_any_order_and_threads_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size_bytes: int, threads: int
) -> None:
    draw, path = random.Random(seed), tmp_path_factory.mktemp("file") / "x"
    wanted = bytearray(size_bytes)
    ranges = cuts(draw, size_bytes, draw.randrange(60))
    for start, end in ranges:
        wanted[start:end] = draw.randbytes(end - start)
    file = BlockFile(path, size_bytes, ranges, blocks=threads + 3)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda one: file.put(memoryview(wanted)[slice(*one)], one[0]), ranges))
    assert file.finish() == "sha256:" + hashlib.sha256(wanted).hexdigest()
    assert path.read_bytes() == wanted


def in_one(path: Path, content: bytes, blocks: int = 8) -> str:
    file = BlockFile(path, len(content), [(0, len(content))], blocks)
    try:
        for start in range(0, len(content), 1000):
            file.put(memoryview(content)[start : start + 1000], start)
        return file.finish()
    finally:
        file.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes past the cache are said to work here, also where the file system of the tests has none."""
    monkeypatch.setattr(blocks, "_open_uncached", lambda path: os.open(path, os.O_WRONLY | os.O_CLOEXEC))


CONTENT = random.Random(0).randbytes(20 * BLOCK + 17)


@pytest.mark.parametrize("refuse", ["open", "pwritev"])
def test_a_file_system_without_writes_past_the_cache_gets_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, refuse: str
) -> None:
    if refuse == "pwritev":
        request.getfixturevalue("plain")
    real: Callable[..., int] = getattr(os, refuse)
    refused = 0

    def refusing(*arguments: object) -> int:
        nonlocal refused
        if refuse == "pwritev" or (isinstance(arguments[1], int) and arguments[1] & os.O_DIRECT):
            refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(*arguments)

    monkeypatch.setattr(os, refuse, refusing)
    in_one(tmp_path / "x", CONTENT)
    assert refused == 1
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["pwritev", "fsync"])
@pytest.mark.usefixtures("plain")
def test_a_full_disk_is_told_to_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space left"):
        in_one(tmp_path / "x", CONTENT)


def test_what_is_closed_early_leaves_no_thread(tmp_path: Path) -> None:
    file = BlockFile(tmp_path / "x", len(CONTENT), [(0, len(CONTENT))])
    file.put(memoryview(CONTENT)[: 2 * BLOCK], 0)
    threads = file._threads
    assert threads
    file.close()
    assert not any(thread.is_alive() for thread in threads)


def test_memory_is_that_of_the_blocks_however_far_ahead_one_writes(tmp_path: Path) -> None:
    file = BlockFile(tmp_path / "x", len(CONTENT), [(0, len(CONTENT))], blocks=4)
    for start in reversed(range(0, len(CONTENT), 100)):  # nothing can be hashed before the very end
        file.put(memoryview(CONTENT)[start : start + 100], start)
        assert len(file._blocks) + len(file._free) <= 4
    assert file.finish() == "sha256:" + hashlib.sha256(CONTENT).hexdigest()
