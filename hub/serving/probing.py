"""Looks deep into the engine, but not more often than it can bear. Never imports torch."""

import asyncio
import time
from collections.abc import Awaitable, Callable

EVERY_S = 10.0
"""Seconds for which one look answers all who ask."""


class Probing:
    """One look at a time, whose outcome is told for a while; belongs to one event loop."""

    def __init__(self, probe: Callable[[], Awaitable[int]], clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._look: asyncio.Future[int] | None = None
        self._ended = 0.0

    async def outcome(self) -> int:
        """What `probe` returned, or raises what it raised, at most EVERY_S seconds ago."""
        if self._look is None or (self._look.done() and self._clock() - self._ended >= EVERY_S):
            self._look = asyncio.ensure_future(self._probe())
            self._look.add_done_callback(self._note)
        # whoever hangs up leaves the look to the others
        return await asyncio.shield(self._look)

    def _note(self, look: asyncio.Future[int]) -> None:
        self._ended = self._clock()
        if not look.cancelled():
            look.exception()  # nobody may have waited for it
