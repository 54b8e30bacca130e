"""Request bodies that are larger than memory: taken piece by piece, never whole."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

from anyio import CancelScope
from fastapi import Request

from adapterhub.hub.api import threads
from adapterhub.hub.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    TemporaryFile: TypeAlias = tempfile._TemporaryFileWrapper[bytes]

PIECE_BYTES = 4 << 20
"""Bytes gathered before a thread takes them: small pieces cost more in handing over than in work."""

_IN_MEMORY_BYTES = 1 << 20


class Write(Protocol):
    """Takes pieces in order."""

    def __call__(self, *pieces: bytes) -> object: ...


async def pour(request: Request, write: Write, limit_bytes: int) -> int:
    """The number of bytes of the body, each of them given to `write` in order, in threads; those of a broken one too.

    Raises TooLarge as soon as more than `limit_bytes` are announced or come, and InvalidRequest when fewer come than
    Content-Length announced.
    """
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) > limit_bytes:
        raise TooLarge(f"the body has {announced} bytes, at most {limit_bytes} are taken here")
    gathered: list[bytes] = []
    waiting = received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit_bytes:
                raise TooLarge(f"the body has more than the {limit_bytes} bytes that are taken here")
            gathered.append(chunk)
            waiting += len(chunk)
            if waiting >= PIECE_BYTES:
                full, gathered, waiting = gathered, [], 0
                await threads.run(write, *full)
    finally:  # what came before the connection broke may be gone on from
        with CancelScope(shield=True):
            await threads.run(write, *gathered)
    if announced is not None and received != int(announced):
        raise InvalidRequest(f"the body ended after {received} of {announced} bytes; send it again")
    return received


async def on_disk(request: Request, folder: Path, limit_bytes: int) -> "TemporaryFile":
    """The whole body as a file of `folder`, gone once it is closed, which is the caller's to do. Raises as `pour`."""
    file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115
    try:
        await pour(request, lambda *pieces: file.writelines(pieces), limit_bytes)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


@asynccontextmanager
async def spooled(request: Request, folder: Path, limit_bytes: int) -> AsyncIterator[IO[bytes]]:
    """The whole body as a file that stands at its start and is gone afterwards; a small one never touches the disk.

    Raises as `pour`.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=str(folder)) as file:
        await pour(request, lambda *pieces: file.writelines(pieces), limit_bytes)
        file.seek(0)
        yield file
