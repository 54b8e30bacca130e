"""The embedded engine: one process that holds models on one device and answers over an inherited socket.

Run by `adapterhub.hub.serving.client` as `python -m adapterhub.hub.serving.engines.embedded --fd N …`; it ends when the
socket is closed. One thread reads requests, a few prepare them (weights from disk, merging, tokens), one computes.
Imports torch: no other process loads this.
"""

import argparse
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from adapterhub.errors import AdapterHubError
from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, Overloaded
from adapterhub.hub.serving import compositions, frames, tasks
from adapterhub.hub.serving.batching import Prompt, Row
from adapterhub.hub.serving.compositions import Troupe
from adapterhub.hub.serving.generation import Generation
from adapterhub.hub.serving.preparing import Preparing
from adapterhub.hub.serving.protocol import (
    MERGED,
    Generate,
    Json,
    Sampling,
    Started,
    Task,
    VariantSpec,
    error_to_json,
    event_to_json,
)
from adapterhub.hub.serving.residents import Lease, Residents
from adapterhub.hub.serving.scheduler import Scheduler
from adapterhub.hub.serving.variants import refusal
from adapterhub.merging.errors import MergingError

PREPARING_THREADS = 4
"""Requests that are prepared at once."""

Pieces = Iterator[Sequence[Json]]
"""The answers to a request, those of one piece of work at a time."""

_log = logging.getLogger("adapterhub.engine")


class _Request:
    """One request in flight: where its answers go, and whether anybody waits for them. It is the scheduler's Work."""

    def __init__(self, send: Callable[[Json], None], number: int, done: Callable[[int], object]) -> None:
        self._send = send
        self._number = number
        self._done = done
        self._pieces: Pieces = iter(())
        self._generation: Generation | None = None
        self._lease: Lease | Troupe | None = None
        self.is_cancelled = False
        self.began = time.monotonic()

    def hold(self, lease: Lease | Troupe) -> None:
        """Keep the lease until the request is closed."""
        self._lease = lease

    def compute(self, pieces: Pieces, generation: Generation | None = None) -> None:
        """Take the answers, each computed when it is asked for. generation: where others may do parts of it."""
        self._pieces, self._generation = pieces, generation

    def rows(self) -> Sequence[Row]:
        return () if self._generation is None else self._generation.rows()

    def unread(self) -> Prompt | None:
        return None if self._generation is None else self._generation.unread()

    def answer(self, message: Json) -> None:
        self._send({"id": self._number, **message})

    def steps(self) -> Iterator[Future[Any] | None]:
        with self.refusing():
            for piece in self._pieces:
                for message in piece:
                    self.answer(message)
                yield None if self._generation is None else self._generation.awaited()

    def refusing(self) -> "_Refusing":
        """Answers whatever is raised inside."""
        return _Refusing(self)

    def refuse(self, error: Exception) -> None:
        self.answer(error_to_json(_refusal(error)))

    def close(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        self._done(self._number)


class _Refusing:
    """The outermost edge of a request: an error becomes its answer, and the process goes on."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self.has_refused = False

    def __enter__(self) -> "_Refusing":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.has_refused = True
        self._request.answer(error_to_json(_refusal(error)))
        return True


def _refusal(error: Exception) -> AdapterHubError:
    if isinstance(error, AdapterHubError):
        return refusal(error) if isinstance(error, MergingError) else error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Overloaded("the device has no memory left for this request; try again later or ask for less")
    _log.error("request failed", exc_info=error)
    return EngineUnavailable(f"the engine failed on this request: {type(error).__name__}; the server's log says more")


class EmbeddedEngine:
    """Answers requests; `serve` returns when the other side has closed the socket."""

    def __init__(self, connection: socket.socket, residents: Residents) -> None:
        self._connection = connection
        self._residents = residents
        self._scheduler = Scheduler()
        self._preparing = Preparing(PREPARING_THREADS)
        self._requests: dict[int, _Request] = {}
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Say that the engine is ready, then read requests until the end."""
        self._scheduler.start()
        self._send({"event": "ready", "pid": os.getpid(), "device": str(self._residents.device)})
        with self._connection.makefile("rb") as stream:
            while (frame := frames.read(stream)) is not None:
                self._take(*frame)
        self._preparing.cancel()

    def _take(self, message: Json, attachment: bytes) -> None:
        number, op = message["id"], message["op"]
        if op == "cancel":
            if number in self._requests:
                self._requests[number].is_cancelled = True
            return
        request = _Request(self._send, number, lambda done: self._requests.pop(done, None))
        self._requests[number] = request
        if op == "state":
            request.answer({"event": "state", **self._state()})
            request.close()
        else:
            self._preparing.submit(partial(self._prepare, request, message, attachment))

    def _prepare(self, request: _Request, message: Json, attachment: bytes) -> None:
        """Make the weights resident, read the inputs, and hand the rest to the scheduler."""
        with request.refusing() as refusing:
            if not request.is_cancelled:
                lease = self._lease(message)
                request.hold(lease)
                _OPERATIONS[message["op"]](request, lease, message, attachment)
                self._scheduler.submit(lease.base, lease.variant, request)
                return
        if refusing.has_refused or request.is_cancelled:
            request.close()

    def _lease(self, message: Json) -> Lease | Troupe:
        op = message["op"]
        if op == "probe":
            return self._residents.again(message["digest"])
        spec = VariantSpec.from_json(message["spec"])
        _check(spec, op)
        if message.get("pinned"):
            compositions.pin(self._residents, spec)
        if op == "load" and spec.composition is None:
            return self._residents.load(spec)
        how = MERGED if op == "task" else None if op == "load" else message["request"]["execution"]
        return compositions.lease(self._residents, spec, how)

    def _state(self) -> Json:
        return {
            "pid": os.getpid(),
            "threads": torch.get_num_threads(),
            "in_flight": len(self._requests) - 1,
            "switches": self._scheduler.switches,
            **self._residents.state(),
        }

    def _send(self, message: Json) -> None:
        try:
            with self._sending:
                self._connection.sendall(frames.pack(message))
        except OSError:
            # the web process is gone; the reading thread learns it at the same time and ends this process
            _log.debug("nobody reads the answers any more")


def _check(spec: VariantSpec, op: str) -> None:
    """Raises InvalidRequest for what several models do not do together."""
    if spec.composition is not None and op == "task":
        raise InvalidRequest(
            f"{spec.composition.operator}(...) composes what models say next, and answers with text alone"
        )


def _load(request: _Request, lease: Lease | Troupe, message: Json, attachment: bytes) -> None:
    request.compute(iter([[{"event": "loaded", "execution_id": lease.execution_id, "size_bytes": lease.size_bytes}]]))


def _generate(request: _Request, lease: Lease | Troupe, message: Json, attachment: bytes) -> None:
    asked = Generate.from_json(message["request"])
    prompt, generation = lease.begin(asked)
    started = Started(len(prompt.tokens), lease.execution_id, 1000 * (time.monotonic() - request.began))

    def pieces() -> Pieces:
        yield [event_to_json(started)]
        for events in generation.steps():
            yield [event_to_json(event) for event in events]

    request.compute(pieces(), generation)


def _task(request: _Request, lease: Lease | Troupe, message: Json, attachment: bytes) -> None:
    asked = replace(Task(**message["request"]), media=attachment or None)

    def pieces() -> Pieces:
        output = tasks.run(lease.loaded, asked)
        yield [{"event": "answer", "output": output, "execution_id": lease.execution_id}]

    request.compute(pieces())


def _probe(request: _Request, lease: Lease | Troupe, message: Json, attachment: bytes) -> None:
    """Whether the base's weights are what was loaded, told once it has generated a token, if it is of that kind."""
    assert isinstance(lease, Lease)  # a probe names a base
    base = lease.base
    # 0 is a token of every vocabulary
    asked = Generate(prompt=[0], max_tokens=1, sampling=Sampling(temperature=0))
    try:
        steps = lease.begin(asked)[1].steps()
    except InvalidRequest:
        steps = iter(())

    def pieces() -> Pieces:
        is_pristine = base.is_pristine
        deque(steps, maxlen=0)
        yield [{"event": "probed", "is_pristine": is_pristine}]

    request.compute(pieces())


_OPERATIONS: dict[str, Callable[[_Request, Lease | Troupe, Json, bytes], None]] = {
    "generate": _generate,
    "load": _load,
    "probe": _probe,
    "task": _task,
}


def choose_device(wanted: str) -> torch.device:
    """The device that a setting names; for "auto" CUDA where there is one, else the CPU.

    Raises SystemExit for a device that this machine does not have.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"ADAPTERHUB_DEVICE={wanted}: {str(error).splitlines()[0]}") from None


def main(arguments: list[str] | None = None) -> None:
    """Serve over the socket that the command line names."""
    parser = argparse.ArgumentParser(description="The embedded engine; started by the server.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pool-bytes", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=given.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(given.threads)
    with socket.socket(fileno=given.fd) as connection:
        residents = Residents(choose_device(given.device), given.pool_bytes)
        EmbeddedEngine(connection, residents).serve()
    # threads that still compute are left behind: nobody waits for their answers
    os._exit(0)


if __name__ == "__main__":
    main()
