"""Which weights an engine that holds one set at a time has, and who computes with them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

OWN = "own"
"""What the weights are called that the engine was started with, or that were put back."""


class Weights:
    """Lets work on one set of weights run side by side, and changes the set when none runs. In the order of asking.

    current: a name, OWN, or None where nobody knows. For the one event loop that uses it.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self.running = 0
        self._turn = asyncio.Lock()  # hands out turns in the order in which they were asked for
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def using(
        self, wanted: str, has: Callable[[], Awaitable[bool]], change: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """While this is entered, the engine has the wanted weights.

        has: whether the engine still has what `current` says. change: puts the wanted weights into it, called while
        nothing else runs; when it raises, nobody knows what is in it.
        """
        async with self._turn:
            if self.current != wanted or not await has():
                await self._idle.wait()
                await self._change(wanted, change)
            self.running += 1
            self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def _change(self, wanted: str, change: Callable[[], Awaitable[None]]) -> None:
        """A change that has begun goes on when who asked for it is gone: half of one would be no weights at all."""
        self.current = None
        changing = asyncio.ensure_future(change())
        try:
            await asyncio.shield(changing)
        except asyncio.CancelledError:
            await asyncio.wait([changing])
            if not changing.cancelled() and changing.exception() is None:
                self.current = wanted
            raise
        self.current = wanted
