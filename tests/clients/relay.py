"""A port that leads to the server and counts what clients send there."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer

from tests.clients.server import Server


class Relay(ThreadingTCPServer):
    """received: bytes that clients sent through it so far."""

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.server = server
        self.received = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, number: int) -> None:
        with self._lock:
            self.received += number


class _Connection(BaseRequestHandler):
    """One client's connection, and the one to the server that it is joined with."""

    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        with self.server.server.connect() as upstream:
            upstream.settimeout(None)
            back = threading.Thread(target=_pump, args=(upstream, self.request, lambda _: None))
            back.start()
            _pump(self.request, upstream, self.server.count)
            back.join()


def _pump(source: socket.socket, target: socket.socket, count: Callable[[int], None]) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            count(len(piece))
            target.sendall(piece)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(server: Server) -> Iterator[Relay]:
    """A relay to that server, until the block ends."""
    with Relay(server) as through:
        accepting = threading.Thread(target=through.serve_forever, kwargs={"poll_interval": 0.05})
        accepting.start()
        try:
            yield through
        finally:
            through.shutdown()
            accepting.join()
