"""Threads that end with their work.

One that has computed with torch keeps the workers of its OpenMP team. As soon as a process has more of those than
cores, GNU's OpenMP has all its threads wait in the kernel between two steps (`gomp_throttled_spin_count_var`), busy or
not: with four idle threads beside it, a pass of 16 rows through 8 LoRAs took 140 ms instead of 55. A team ends with its
thread.
"""

import threading
from collections import deque
from collections.abc import Callable


class Preparing:
    """Does work in the background, each piece in a thread of its own, at most `most` at a time."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], object]) -> None:
        """Begin `work`, which must not raise, as soon as a thread is free; in the order of these calls."""
        with self._lock:
            self._waiting.append(work)
        self._begin()

    def cancel(self) -> None:
        """Forget what has not begun."""
        with self._lock:
            self._waiting.clear()

    def _begin(self) -> None:
        with self._lock:
            if not self._free or not self._waiting:
                return
            self._free -= 1
            work = self._waiting.popleft()
        threading.Thread(target=self._run, args=(work,), name="prepare", daemon=True).start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            with self._lock:
                self._free += 1
            self._begin()
