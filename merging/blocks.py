"""A new file whose bytes come in any order and from any thread: hashed in its own order, and brought to the disk.

Blocks of it lie in memory between those who compute and two threads, one that hashes and one that writes, so that
nobody waits for the hash or the disk. A large file goes past the system's cache: copying it there costs as much as
computing it, and pushes out what is read. Never imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

BLOCK_BYTES = 4 << 20
BLOCKS = 16
"""Most blocks in memory unless more are allowed: 64 MiB."""

UNCACHED_BYTES = 64 << 20
"""Size from which on a file goes past the system's cache."""

_AT_ONCE = 4
"""Most blocks in one write."""


@dataclass
class _Block:
    """A block in memory. pins: how many use it now; is_dirty: whether the disk has something else."""

    memory: memoryview = field(default_factory=lambda: memoryview(mmap.mmap(-1, BLOCK_BYTES)))  # begins at a page
    pins: int = 0
    is_dirty: bool = False


class BlockFile:
    """A file that is made at `path`, whole and durable once `finish` has returned.

    size_bytes: of the file; planned: ranges of bytes that do not overlap, and each byte of which will be put once; all
    other bytes are zeros. blocks: most of them in memory, at least three more than there are threads that put. `close`
    ends it at any time.
    """

    def __init__(self, path: Path, size_bytes: int, planned: Iterable[tuple[int, int]], blocks: int = BLOCKS) -> None:
        self._size_bytes = size_bytes
        self._count = -(-size_bytes // BLOCK_BYTES)
        self._missing = [0] * self._count  # bytes that are still to be put
        for start, end in planned:
            for number, first, last in _cut(start, end):
                self._missing[number] += last - first
        self._has_zeros = [missing < self._length(number) for number, missing in enumerate(self._missing)]
        self._unwritten = sum(missing > 0 for missing in self._missing)
        self._ready: set[int] = set()  # whole, and to be written
        self._on_disk: set[int] = set()
        self._hash, self._hashed = hashlib.sha256(), 0
        self._blocks: dict[int, _Block] = {}
        self._free: list[_Block] = []
        self._room = blocks
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._error: OSError | None = None
        self._is_closed = False
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._uncached = _open_uncached(path) if size_bytes >= UNCACHED_BYTES else None
        self._is_refused = False  # whether writes past the cache were

    def put(self, view: memoryview, start: int) -> None:
        """Put bytes, as a view of single bytes, at a place. Raises the OSError that writing met, now or before."""
        for number, first, last in _cut(start, start + len(view)):
            block, offset = self._pinned(number), number * BLOCK_BYTES
            block.memory[first - offset : last - offset] = view[first - start : last - start]
            with self._changed:
                block.is_dirty = True
                self._missing[number] -= last - first
                if not self._missing[number]:
                    self._ready.add(number)
                    if not self._threads and self._count > 1:
                        self._threads = [self._started(self._hash_all), self._started(self._write_all)]
                self._let_go(number, block)

    def finish(self) -> str:
        """The file's digest, once all that was planned has been put. Raises OSError."""
        if not self._threads:  # of one block
            self._hash_all()
            self._write_all()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        os.truncate(self._fd, self._size_bytes)
        os.fsync(self._fd)
        self.close()
        return "sha256:" + self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file. May be called repeatedly."""
        if self._is_closed:
            return
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        os.close(self._fd)
        if self._uncached is not None:
            os.close(self._uncached)

    # ---- blocks in memory ----------------------------------------------------------------------------------------

    def _length(self, number: int) -> int:
        return min(BLOCK_BYTES, self._size_bytes - number * BLOCK_BYTES)

    def _pinned(self, number: int) -> _Block:
        """The block, in memory until it is let go of."""
        with self._changed:
            while number not in self._blocks and self._error is None:
                block = self._spare()
                if block is None:
                    self._changed.wait()
                    continue
                if number in self._on_disk:
                    os.preadv(self._fd, [block.memory[: self._length(number)]], number * BLOCK_BYTES)
                elif self._has_zeros[number]:
                    block.memory[:] = bytes(BLOCK_BYTES)
                self._blocks[number] = block
            if self._error is not None:
                raise self._error
            self._blocks[number].pins += 1
            return self._blocks[number]

    def _spare(self) -> _Block | None:
        """A block whose memory nobody needs; None while all do, of which one soon will not."""
        if self._free:
            return self._free.pop()
        if self._room:
            self._room -= 1
            return _Block()
        is_hashing = bool(self._threads) and self._hashed < self._count and self._is_whole(self._hashed)
        if is_hashing:  # and lets one go soon
            return None
        idle = sorted((number for number, block in self._blocks.items() if not block.pins), reverse=True)
        for number in idle:  # the last ones first, for they are hashed last
            if not self._blocks[number].is_dirty:
                return self._blocks.pop(number)
        for number in idle:
            if self._missing[number]:
                self._write(number, [self._blocks[number]])
                return self._blocks.pop(number)
        return None

    def _let_go(self, number: int, block: _Block) -> None:
        block.pins -= 1
        if not block.pins and not block.is_dirty and number < self._hashed:
            self._free.append(self._blocks.pop(number))
        self._changed.notify_all()

    # ---- the two threads -----------------------------------------------------------------------------------------

    def _started(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except OSError as error:  # raised where somebody waits for it
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()

        thread = threading.Thread(target=guarded, name=work.__name__, daemon=True)
        thread.start()
        return thread

    def _wait(self, is_there: Callable[[], bool]) -> bool:
        """Whether it is there now, and not the end of all work."""
        self._changed.wait_for(lambda: is_there() or self._is_closed or self._error is not None)
        return is_there() and not self._is_closed and self._error is None

    def _hash_all(self) -> None:
        for number in range(self._count):
            with self._changed:
                if not self._wait(partial(self._is_whole, number)):
                    return
                block = self._blocks.get(number)
                if block is not None:
                    block.pins += 1
            self._hash.update(self._read_back(number) if block is None else block.memory[: self._length(number)])
            with self._changed:
                self._hashed = number + 1
                if block is not None:
                    self._let_go(number, block)
                self._changed.notify_all()  # who waits for memory looks where the hash is

    def _is_whole(self, number: int) -> bool:
        return not self._missing[number]

    def _read_back(self, number: int) -> bytes:
        """A whole block that is not in memory."""
        if number not in self._on_disk:
            return bytes(self._length(number))
        return os.pread(self._fd, self._length(number), number * BLOCK_BYTES)

    def _write_all(self) -> None:
        while self._unwritten:
            with self._changed:
                if not self._wait(lambda: bool(self._ready)):
                    return
                numbers = list(_adjacent(sorted(self._ready)))
                blocks = [self._blocks[number] for number in numbers]
                for block in blocks:
                    block.pins += 1
                self._ready.difference_update(numbers)
            self._write(numbers[0], blocks)
            with self._changed:
                self._unwritten -= len(numbers)
                for number, block in zip(numbers, blocks, strict=True):
                    self._let_go(number, block)

    def _write(self, first: int, blocks: Sequence[_Block]) -> None:
        """Bring adjacent blocks to the disk; they are pinned, or this is under the lock."""
        views = [block.memory for block in blocks]
        if not self._written_uncached(views, first * BLOCK_BYTES):
            for number, view in enumerate(views, first):
                _write_at(self._fd, view[: self._length(number)], number * BLOCK_BYTES)
        for number, block in enumerate(blocks, first):
            block.is_dirty = False
            self._on_disk.add(number)

    def _written_uncached(self, views: Sequence[memoryview], start: int) -> bool:
        """Whether whole blocks were written past the cache; the file ends after the last of them until `finish`."""
        if self._uncached is None or self._is_refused:
            return False
        try:
            return os.pwritev(self._uncached, views, start) == sum(map(len, views))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._is_refused = True  # opened so, and yet it cannot; not closed, for another thread may write now
            return False


def _cut(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The blocks of a range of bytes: number, and first and last byte of the range in it."""
    while start < end:
        number = start // BLOCK_BYTES
        stop = min(end, (number + 1) * BLOCK_BYTES)
        yield number, start, stop
        start = stop


def _adjacent(numbers: list[int]) -> Iterator[int]:
    """The first of sorted numbers and those that follow it without a gap, at most _AT_ONCE."""
    yield numbers[0]
    for before, number in pairwise(numbers[:_AT_ONCE]):
        if number != before + 1:
            return
        yield number


def _open_uncached(path: Path) -> int | None:
    """The file opened for writes past the system's cache; None on a file system that has no such writes."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def _write_at(fd: int, view: memoryview, start: int) -> None:
    while len(view):
        count = os.pwrite(fd, view, start)
        view, start = view[count:], start + count
