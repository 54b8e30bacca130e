"""The processes that train and measure, so that the command itself never loads torch and two cores are in use.

Each computes with one thread: at these sizes two processes of one thread do more than one of two, and a sum over one
thread comes out the same on every run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any, Self

from adapterhub.cli.demo import works
from adapterhub.cli.demo.errors import DemoFailed
from adapterhub.cli.demo.works import Sizes, Work

PROCESSES = 2
REPORT_EVERY = 5
"""Steps between two reports of a work."""

Event = tuple[str, int, int, float]
"""Name of the work, steps done, steps in all, loss of the last step."""

_events: Queue[Event | None] | None = None
_stopped: Flag | None = None


class Workshop:
    """Two processes that stay, each with torch loaded once. Use as a context manager; leaving it ends them.

    Left by an error, Ctrl-C among them, it stops what is being trained within a few steps.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue: Queue[Event | None] = context.Queue()
        self._stopped = context.Event()
        self._pool = ProcessPoolExecutor(PROCESSES, context, _prepare, (self._queue, self._stopped))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._queue.close()

    def make(
        self, wanted: Sequence[Work], folder: Path, sizes: Sizes, on_event: Callable[[Event], None]
    ) -> dict[str, float]:
        """Make the works, each once its base is there; held-out measures by name. Raises what a work raised."""
        with self._listening(on_event):
            return self._make(list(wanted), folder, sizes)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a function of `works` in one of the processes."""
        return self._pool.submit(function, *arguments)

    def _make(self, waiting: list[Work], folder: Path, sizes: Sizes) -> dict[str, float]:
        running: dict[Future[float], str] = {}
        made: dict[str, float] = {}
        while waiting or running:
            ready = [work for work in waiting if work.base is None or work.base in made]
            for work in ready:
                running[self._pool.submit(_make, work, folder, sizes)] = work.name
                waiting.remove(work)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                made[running.pop(future)] = future.result()
        return made

    @contextmanager
    def _listening(self, on_event: Callable[[Event], None]) -> Iterator[None]:
        def listen() -> None:
            while (event := self._queue.get()) is not None:
                on_event(event)

        listener = threading.Thread(target=listen, name="workshop-events", daemon=True)
        listener.start()
        try:
            yield
        finally:
            self._queue.put(None)
            listener.join()


def _prepare(queue: Queue[Event | None], stopped: Flag) -> None:
    """Set up a process of the workshop: one thread, no network, and no warnings between the progress bars."""
    global _events, _stopped
    _events, _stopped = queue, stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which tells us to stop
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    warnings.simplefilter("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _make(work: Work, folder: Path, sizes: Sizes) -> float:
    def report(done: int, total: int, loss: float) -> None:
        if _events is not None and (done % REPORT_EVERY == 0 or done == total):
            _events.put((work.name, done, total, loss))
        if _stopped is not None and _stopped.is_set():
            raise DemoFailed(f"{work.name}: stopped after {done} of {total} steps")

    return works.make(work, folder, sizes, report)
