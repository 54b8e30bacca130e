"""Connections whose request bodies arrive in large pieces, each copied once on its way from the socket to the route."""

import asyncio

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

READ_BYTES = 1 << 20
"""Taken from a socket at once, where so much waits: a turn of the event loop costs as much as hashing 100 KiB."""

_read = memoryview(bytearray(READ_BYTES))
"""What a socket was last read into. All connections of the event loop share it: it is empty again before the next."""


class Connection(HttpToolsProtocol):
    """uvicorn's own connection, saved the copies that a large body needs not.

    The loop reads into `_read`, where it would make bytes of its own; and what the parser cuts from there is handed to
    the route as it is, where it would be gathered and copied again.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin, and have the loop read as `_Reader` says."""
        super().connection_made(transport)
        transport.set_protocol(_Reader(self))

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body at hand; reading pauses once much of it waits for the route."""
        cycle = self.cycle
        waiting: object = cycle and cycle.body
        if len(body) > HIGH_WATER_LIMIT and not (self.parser.should_upgrade() or waiting or cycle.response_complete):
            cycle.body, body = body, b""  # type: ignore[assignment]  # uvicorn makes bytes of it, which it is
        elif isinstance(waiting, bytes):
            cycle.body = bytearray(waiting)  # grows at its end, where bytes would be copied for each small piece
        super().on_body(body)


class _Reader(asyncio.BufferedProtocol):
    """What the loop sees of a connection: a class of its own, as an asyncio.Protocol is never asked for its buffer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(_read[:nbytes])  # type: ignore[arg-type]  # the parser takes any buffer
