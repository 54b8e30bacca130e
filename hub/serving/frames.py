"""How messages travel between the web process and an engine's process.

A frame is two unsigned 32-bit big-endian numbers, the bytes of a JSON object and of an attachment, then both. A request
is {"id", "op", ...}; every answer carries the id of its request. The attachment is for bytes that would not fit JSON.
"""

import json
import struct
from asyncio import IncompleteReadError, StreamReader
from collections.abc import Mapping
from typing import Any, BinaryIO

MAX_FRAME_BYTES = 256 << 20
"""Longest frame that either side reads; a longer one means that the two no longer understand each other."""

_LENGTHS = struct.Struct(">II")

Json = dict[str, Any]


def pack(message: Mapping[str, Any], attachment: bytes = b"") -> bytes:
    """The frame of a message. Raises ValueError when it is longer than MAX_FRAME_BYTES."""
    text = json.dumps(message, separators=(",", ":")).encode()
    header = _LENGTHS.pack(len(text), len(attachment))
    _lengths(header)
    return b"".join((header, text, attachment))


def read(stream: BinaryIO) -> tuple[Json, bytes] | None:
    """The next message and attachment of a blocking stream; None at its end, also in the middle of a frame."""
    header = stream.read(_LENGTHS.size)
    if len(header) < _LENGTHS.size:
        return None
    text_bytes, attachment_bytes = _lengths(header)
    body = stream.read(text_bytes + attachment_bytes)
    if len(body) < text_bytes + attachment_bytes:
        return None
    return json.loads(body[:text_bytes]), body[text_bytes:]


async def read_async(stream: StreamReader) -> tuple[Json, bytes] | None:
    """As `read`, from a stream of asyncio."""
    try:
        text_bytes, attachment_bytes = _lengths(await stream.readexactly(_LENGTHS.size))
        body = await stream.readexactly(text_bytes + attachment_bytes)
    except (IncompleteReadError, ConnectionError):
        return None
    return json.loads(body[:text_bytes]), body[text_bytes:]


def _lengths(header: bytes) -> tuple[int, int]:
    text, attachment = _LENGTHS.unpack(header)
    if text + attachment > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {text + attachment} bytes; at most {MAX_FRAME_BYTES} are read")
    return text, attachment
