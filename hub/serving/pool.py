"""Keeps what is expensive to make in a bounded number of bytes: made once for all who wait, evicted by cost and size.

Who uses an entry pins it; nothing pinned is evicted. Bytes that others fill are counted with it.
Safe to call from any thread. Never imports torch.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from adapterhub.hub.errors import Overloaded, TooLarge

T = TypeVar("T")

Key = tuple[str, str]
"""What sort of thing, and its digest."""


REMEMBERED_S = 30.0
"""How long an error that would come again is told without another try: files may be mended in the meantime."""
MOST_REMEMBERED = 1024


@dataclass
class _Entry(Generic[T]):
    made: "Future[T]" = field(default_factory=Future)
    size_bytes: int = 0
    pins: int = 1
    label: str = ""
    priority: float = 0.0
    cost_s: float = 0.0
    on_evict: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Held:
    """One entry: what it is called for people, its bytes, and how many use it now."""

    key: Key
    label: str
    size_bytes: int
    pins: int


@dataclass
class Counts:
    """What the pool did so far; load_s: seconds spent on what it made."""

    hits: int = 0
    loads: int = 0
    evictions: int = 0
    refused: int = 0
    load_s: float = 0.0


class Pool:
    """Entries by key, together at most `limit_bytes`.

    Eviction is GreedyDual-Size: the unpinned entry goes whose seconds to make it again, per byte, plus the pool's age
    when it was last used, are least. Source: Cao & Irani, "Cost-aware WWW proxy caching algorithms" (1997), sec. 4.
    """

    def __init__(
        self,
        limit_bytes: int,
        lasting: tuple[type[Exception], ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """lasting: errors that would come again, and are told for REMEMBERED_S without another try."""
        self.limit_bytes = limit_bytes
        self.counts = Counts()
        self._lasting = lasting
        self._clock = clock
        self._refused: OrderedDict[Key, tuple[float, Exception]] = OrderedDict()
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry[Any]] = {}
        self._age = 0.0
        self._reserved_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are counted for others."""
        return self._reserved_bytes

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._used_bytes()

    @property
    def waiting(self) -> int:
        """How many wait for an entry that another of them is making."""
        with self._lock:
            return sum(entry.pins - 1 for entry in self._entries.values() if not entry.made.done())

    def held(self) -> list[Held]:
        """The entries that are complete."""
        with self._lock:
            return [
                Held(key, entry.label, entry.size_bytes, entry.pins)
                for key, entry in self._entries.items()
                if entry.made.done()
            ]

    def acquire(
        self,
        key: Key,
        measure: Callable[[], int],
        make: Callable[[], T],
        on_evict: Callable[[], None] = lambda: None,
        label: str = "",
    ) -> T:
        """The entry of `key`, pinned until `release`; made by the first who asks, while the others wait.

        measure: bytes that `make` will need, asked before. on_evict: called after the entry is gone. label: see `Held`.
        Raises Overloaded when what is pinned leaves no room, TooLarge when no eviction could make room, and what `make`
        raises, to all who wait; the next who asks tries again, unless the error is a lasting one.
        """
        with self._lock:
            self._raise_remembered(key)
            entry: _Entry[T] | None = self._entries.get(key)
            if is_mine := entry is None:
                entry = self._entries[key] = _Entry(on_evict=on_evict, label=label)
                self.counts.loads += 1
            else:
                entry.pins += 1
                self.counts.hits += 1
        if is_mine:
            self._fill(key, entry, measure, make)
        return entry.made.result()

    def holds(self, key: Key) -> bool:
        """Whether the entry is there, complete."""
        with self._lock:
            return key in self._entries and self._entries[key].made.done()

    def peek(self, key: Key) -> object | None:
        """The entry as it is, not pinned; None where it is not there, or not complete."""
        with self._lock:
            entry = self._entries.get(key)
            is_complete = entry is not None and entry.made.done() and entry.made.exception() is None
            return entry.made.result() if entry is not None and is_complete else None

    def again(self, key: Key) -> Any | None:
        """The entry of `key`, pinned until `release`; None where it is not complete."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.made.done():
                return None
            entry.pins += 1
        return entry.made.result()

    def release(self, key: Key, *, was_used: bool = True) -> None:
        """Give back one pin. was_used: count as a use, for eviction."""
        with self._lock:
            entry = self._entries[key]
            entry.pins -= 1
            if was_used:
                entry.priority = self._age + entry.cost_s / max(entry.size_bytes, 1)

    def reserve(self, size_bytes: int) -> None:
        """Count so many bytes, to be filled by whoever asks, until `give_back`. Raises as `acquire`."""

        def count() -> None:
            self._reserved_bytes += size_bytes

        self._make_room(size_bytes, count, "this answer")

    def resize(self, key: Key, by_bytes: int) -> None:
        """Count so many bytes more, or fewer, for an entry, if it is there."""
        with self._lock:
            if key in self._entries:
                self._entries[key].size_bytes += by_bytes

    def give_back(self, size_bytes: int) -> None:
        """So many of the reserved bytes are free again."""
        with self._lock:
            self._reserved_bytes -= size_bytes

    def _fill(self, key: Key, entry: _Entry[T], measure: Callable[[], int], make: Callable[[], T]) -> None:
        began = time.monotonic()
        try:
            size_bytes = measure()

            def count() -> None:
                entry.size_bytes = size_bytes

            self._make_room(size_bytes, count, "this one")
            made = make()
        except BaseException as error:
            with self._lock:
                del self._entries[key]
                if isinstance(error, self._lasting):
                    self._refused[key] = self._clock() + REMEMBERED_S, error
                    self._refused.move_to_end(key)
            entry.made.set_exception(error)
            raise
        entry.cost_s = time.monotonic() - began
        with self._lock:
            self.counts.load_s += entry.cost_s
        entry.made.set_result(made)

    def _raise_remembered(self, key: Key) -> None:
        """Raise the lasting error that making this had a short while ago; forget those of longer ago."""
        now = self._clock()
        while self._refused:
            oldest = next(iter(self._refused))
            if self._refused[oldest][0] > now and len(self._refused) <= MOST_REMEMBERED:
                break
            del self._refused[oldest]
        if key in self._refused:
            self.counts.refused += 1
            raise self._refused[key][1].with_traceback(None)

    def _make_room(self, size_bytes: int, count: Callable[[], None], what: str) -> None:
        """Evict until so many bytes are free; `count` is called under the lock. what: for the message."""
        if size_bytes > self.limit_bytes:
            raise TooLarge(
                f"this needs {size_bytes} bytes in memory; the server keeps at most {self.limit_bytes} "
                "(ADAPTERHUB_POOL_BYTES)"
            )
        while True:
            with self._lock:
                if self._used_bytes() + size_bytes <= self.limit_bytes:
                    count()
                    return
                evicted = self._evict(what)
            # outside the lock: it releases a pin of another entry
            evicted.on_evict()

    def _evict(self, what: str) -> _Entry[Any]:
        idle = {key: entry for key, entry in self._entries.items() if not entry.pins}
        if not idle:
            raise Overloaded(
                f"what is in use leaves no room in memory for {what} (ADAPTERHUB_POOL_BYTES={self.limit_bytes}); "
                "try again later"
            )
        key = min(idle, key=lambda key: idle[key].priority)
        self._age = idle[key].priority
        self.counts.evictions += 1
        return self._entries.pop(key)

    def _used_bytes(self) -> int:
        return self._reserved_bytes + sum(entry.size_bytes for entry in self._entries.values())
