"""Many tensors at a time, each on one thread: results do not depend on how many threads there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def each(items: Iterable[Item], work: Callable[[Item], Outcome], threads: int | None) -> Iterator[Outcome]:
    """work(item) for every item, in the order of the items, at most `threads` at a time.

    threads: None takes as many as torch would. The first error ends it: what has not begun is not begun, what runs is
    waited for, and the error is raised. Memory is that of the items in work; outcomes wait until they are asked for.
    """
    failed = threading.Event()

    def guarded(item: Item) -> Outcome:
        if failed.is_set():
            raise CancelledError
        is_done = False
        try:
            outcome = work(item)
            is_done = True
            return outcome
        finally:
            if not is_done:
                failed.set()

    _keep_freed_memory()
    with one_thread_each() as most:
        pool = ThreadPoolExecutor(max_workers=threads or most, thread_name_prefix="merge")
        try:
            # items begin in order, so the first outcome that is an error is the error itself
            for future in [pool.submit(guarded, item) for item in items]:
                yield future.result()
        finally:
            failed.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _keep_freed_memory() -> None:
    """Have the C library reuse memory as large as a tile instead of asking the system for zeroed pages each time.

    glibc takes the size of the largest block of at most 32 MiB that was freed as the one from which it does so, and
    gives back twice that: mallopt(3), M_MMAP_THRESHOLD. A quarter of a merge's time goes into such pages else.
    """
    import torch

    torch.empty(31 << 20, dtype=torch.uint8)


_lock = threading.Lock()
_users = 0
_threads_before = 0


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Keep torch on one thread in each of ours while the block runs; gives the number it would have taken.

    torch has one setting for the process: the first block in changes it and the last one out puts it back.
    """
    import torch

    global _users, _threads_before
    with _lock:
        if _users == 0:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(1)
        _users += 1
        most = _threads_before
    try:
        yield most
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_threads_before)
