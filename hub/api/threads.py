"""The bounded pool of threads in which services run; the event loop itself never waits for a disk or a database."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")

POOL_THREADS = 32
"""Service calls that run at once; further ones wait their turn."""

_limiters: RunVar[dict[str, CapacityLimiter]] = RunVar("adapterhub_limiters")


def turns(name: str, at_once: int) -> CapacityLimiter:
    """The turns at the work of that name: `async with turns("xorb", 2)` waits while 2 others are inside."""
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {}
        _limiters.set(limiters)
    return limiters.setdefault(name, CapacityLimiter(at_once))


async def run(fn: Callable[..., T], *args: object) -> T:
    """What `fn(*args)` returns, run in a thread of the pool; its errors are raised here.

    The call is not abandoned when the client hangs up: a service either finishes or was never begun.
    """
    return await to_thread.run_sync(fn, *args, limiter=turns("threads", POOL_THREADS))


async def iterate(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a blocking iterator, each fetched in a thread; the iterator is closed whatever happens."""
    end = object()
    try:
        while (piece := await run(next, pieces, end)) is not end:
            assert isinstance(piece, bytes)
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
