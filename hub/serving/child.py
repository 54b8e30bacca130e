"""The engine's child process: how it is started, kept alive, and ended. Never imports torch."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog

from adapterhub.hub.serving.cores import threads_of
from adapterhub.hub.settings import Settings

GRACE_S = 5.0
"""Seconds that the child has to end after its socket is closed, before it is killed."""
BACKOFF_S = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
"""Pauses before the child is started again, after so many deaths in a row."""
HEALTHY_S = 30.0
"""A child that lived so long starts the row of deaths anew."""

_SECRET_PREFIXES = ("ADAPTERHUB_", "AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PG")

_log = structlog.get_logger()


def command(settings: Settings, fd: int) -> list[str]:
    """The command line of the embedded engine, which speaks over the socket `fd`."""
    arguments = {
        "--fd": fd,
        "--device": settings.device,
        "--threads": threads_of(settings.threads),
        "--pool-bytes": settings.pool_bytes,
        "--log-level": settings.log_level,
    }
    words = (str(word) for pair in arguments.items() for word in pair)
    return [sys.executable, "-m", "adapterhub.hub.serving.engines.embedded", *words]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What the child inherits: no credential of the service, and no way for a library to fetch or to phone home."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(_SECRET_PREFIXES)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


@asynccontextmanager
async def spawned(
    command: Callable[[int], Sequence[str]],
) -> AsyncIterator[tuple[Process, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A child and the streams to it. On leaving, the socket is closed, on which the child ends; else it is killed."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *command(theirs.fileno()),
            env=environment(os.environ),
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            # a terminal's Ctrl-C is for the web process, which then ends its children
            start_new_session=True,
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield process, reader, writer
    finally:
        writer.close()
        await asyncio.shield(_ended(process))


async def _ended(process: Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def keep_alive(one_life: Callable[[], Awaitable[None]]) -> None:
    """Run `one_life`, which lasts as long as the child, again and again, with pauses that grow while it dies young."""
    deaths = 0
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await one_life()
        lived_s = loop.time() - began
        deaths = 0 if lived_s > HEALTHY_S else deaths + 1
        pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
        _log.warning("engine.died", lived_s=round(lived_s, 1), restart_in_s=pause_s)
        await asyncio.sleep(pause_s)
