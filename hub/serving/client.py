"""The web process's side of the embedded engine: keeps its child process alive and asks it things.

Never imports torch. When the child dies, whatever is in flight fails at once with EngineUnavailable and the child is
started again; a request that comes meanwhile waits for it.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace

from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, Overloaded
from adapterhub.hub.serving import child, frames
from adapterhub.hub.serving.frames import Json
from adapterhub.hub.serving.protocol import (
    Answer,
    Event,
    Finished,
    Generate,
    Task,
    VariantSpec,
    error_from_json,
    event_from_json,
)
from adapterhub.hub.settings import Settings

START_S = 90.0
"""Seconds that a request waits for an engine that is starting."""
FIRST_ANSWER_S = 300.0
"""Seconds until the first answer: waiting one's turn, reading the weights, merging."""
NEXT_ANSWER_S = 60.0
"""Seconds between two answers of one request."""
PROBE_S = 30.0
"""Seconds within which all bases in memory are looked at, behind whoever computes."""
QUEUE_LIMIT = 64
"""Requests in flight; one more is refused with Overloaded."""


@dataclass
class _Connection:
    """The socket to one life of the child; `waiting` holds a queue of answers for each request in flight."""

    writer: asyncio.StreamWriter
    waiting: dict[int, asyncio.Queue[Json | None]] = field(default_factory=dict)

    def send(self, message: Mapping[str, object], attachment: bytes = b"") -> None:
        if not self.writer.is_closing():
            self.writer.write(frames.pack(message, attachment))

    def lose(self) -> None:
        """Tell everybody who waits that no answer will come."""
        for answers in self.waiting.values():
            answers.put_nowait(None)
        self.writer.close()


class EngineClient:
    """An `Engine` in a child process; `start` and `stop` belong to the one event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ids = itertools.count(1)
        self._pinned: dict[str, Json] = {}
        self._connection: asyncio.Future[_Connection] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def is_ready(self) -> bool:
        """Whether the child runs and has said so."""
        return self._connection is not None and self._connection.done()

    def command(self, fd: int) -> Sequence[str]:
        """What is executed as the child, which inherits its end of the socket as `fd`."""
        return child.command(self._settings, fd)

    async def start(self) -> None:
        """Start the child and keep it running; returns at once. May be called repeatedly."""
        if self._supervisor is None and self._settings.engine != "none":
            self._connection = asyncio.get_running_loop().create_future()
            self._supervisor = asyncio.create_task(child.keep_alive(self._one_life), name="engine")

    async def stop(self) -> None:
        """End the child: asked first, killed when it does not end. May be called repeatedly."""
        self._stopping = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])

    async def load(self, spec: VariantSpec, *, pinned: bool = False) -> Json:
        message = {"spec": spec.to_json(), "pinned": pinned}
        answer = await self._ask("load", message)
        if pinned:
            self._pinned[spec.vid] = message
        return answer

    async def generate(self, spec: VariantSpec, request: Generate) -> AsyncGenerator[Event, None]:
        message = {"spec": spec.to_json(), "request": asdict(request)}
        unfinished = request.n
        async with self._exchange("generate", message) as answers:
            async for answer in answers:
                event = event_from_json(answer)
                if event is None:
                    raise EngineUnavailable(f"the engine answered {answer['event']!r} to a generation")
                yield event
                unfinished -= isinstance(event, Finished)
                if not unfinished:
                    return

    async def task(self, spec: VariantSpec, request: Task) -> Answer:
        message = {"spec": spec.to_json(), "request": asdict(replace(request, media=None))}
        answer = await self._ask("task", message, request.media or b"")
        return Answer(answer["output"], answer["execution_id"])

    async def state(self) -> Json:
        return await self._ask("state", {})

    async def probe(self) -> int:
        """How many bases are in memory: each as it was loaded, and fit to generate a token if it is of that kind.

        Raises EngineUnavailable where one is not, or no answer comes in time.
        """
        if not self.is_ready:
            raise EngineUnavailable("the engine is starting")
        try:
            return await asyncio.wait_for(self._probed(), PROBE_S)
        except TimeoutError:
            raise EngineUnavailable(f"the engine did not answer a probe within {PROBE_S:.0f} s") from None

    async def _probed(self) -> int:
        bases = [one for one in (await self.state())["resident"] if one["kind"] == "base"]
        for base in bases:
            try:
                found = await self._ask("probe", {"digest": base["digest"]})
            except InvalidRequest:
                continue  # it was evicted meanwhile
            if not found["is_pristine"]:
                raise EngineUnavailable(f"the weights of a base in memory, {base['digest']}, are not what was loaded")
        return len(bases)

    async def _ask(self, op: str, message: Json, attachment: bytes = b"") -> Json:
        async with self._exchange(op, message, attachment) as answers:
            return await anext(answers)

    @asynccontextmanager
    async def _exchange(
        self, op: str, message: Json, attachment: bytes = b""
    ) -> AsyncIterator[AsyncGenerator[Json, None]]:
        """The answers to one request; a request that is left before its last answer is cancelled."""
        connection = await self._connected()
        if len(connection.waiting) >= QUEUE_LIMIT:
            raise Overloaded(f"{QUEUE_LIMIT} requests are in flight; try again in a few seconds")
        number = next(self._ids)
        queue = connection.waiting[number] = asyncio.Queue()
        answers = _answers(queue)
        try:
            connection.send({"id": number, "op": op, **message}, attachment)
            yield answers
        finally:
            await answers.aclose()
            del connection.waiting[number]
            # the child has forgotten a request that is complete and ignores this
            connection.send({"id": number, "op": "cancel"})

    async def _connected(self) -> _Connection:
        if self._settings.engine == "none":
            raise EngineUnavailable("this server serves no models (ADAPTERHUB_ENGINE=none)")
        await self.start()
        assert self._connection is not None
        try:
            return await asyncio.wait_for(asyncio.shield(self._connection), START_S)
        except TimeoutError:
            raise EngineUnavailable(f"the engine did not start within {START_S:.0f} s") from None

    async def _one_life(self) -> None:
        """Start the child, hand out its answers, and return when it is gone."""
        connection = None
        async with child.spawned(self.command) as (process, reader, writer):
            self._process = process
            try:
                while (frame := await frames.read_async(reader)) is not None:
                    answer, _ = frame
                    if connection is None:
                        connection = self._open(writer)
                    elif answer["id"] in connection.waiting:
                        connection.waiting[answer["id"]].put_nowait(answer)
            finally:
                self._close(connection)

    def _open(self, writer: asyncio.StreamWriter) -> _Connection:
        """The child's first frame says that it is ready: let the requests that wait for it go on."""
        assert self._connection is not None
        connection = _Connection(writer)
        self._connection.set_result(connection)
        for message in self._pinned.values():  # into the memory of a child that follows one that was lost
            connection.send({"id": next(self._ids), "op": "load", **message})
        return connection

    def _close(self, connection: _Connection | None) -> None:
        if connection is not None:
            self._connection = asyncio.get_running_loop().create_future()
            connection.lose()


async def _answers(queue: asyncio.Queue[Json | None]) -> AsyncGenerator[Json, None]:
    """The answers of one request, as they come. Raises what the engine refused, EngineUnavailable when it is lost."""
    patience_s = FIRST_ANSWER_S
    while True:
        try:
            answer = await asyncio.wait_for(queue.get(), patience_s)
        except TimeoutError:
            raise EngineUnavailable(f"the engine did not answer within {patience_s:.0f} s") from None
        if answer is None:
            raise EngineUnavailable("the engine stopped while it worked on this request and is starting again")
        if answer["event"] == "error":
            raise error_from_json(answer)
        yield answer
        patience_s = NEXT_ANSWER_S
