"""The job process: leases jobs and runs them, one at a time. Here, and not in the web process, torch is loaded.

Run as `python -m adapterhub.hub.worker NAME` by the process executor; NAME is what its leases are held under. Ends on
SIGTERM, and when its standard input closes because the web process is gone: the running job is then given back.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.hub import logging
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import DatabaseBusy
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.jobs.runner import Handler, run
from adapterhub.hub.services import (
    fingerprints,
    ingest,
    layers,
    merges,
    mirror_inputs,
    ports,
    reproductions,
    tunings,
    webhook_events,
    webhooks,
    xet_retention,
)
from adapterhub.hub.services.mirror_inputs import before
from adapterhub.hub.services.wiring import open_hub
from adapterhub.hub.serving.cores import threads_of
from adapterhub.hub.settings import Settings
from adapterhub.merging import engine, porting, reproduction
from adapterhub.merging.analysis.norms import layer_norms
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.transfer.report import portability

POLL_S = 0.2
"""Seconds between two looks into an empty queue."""
DUE_S = 600.0
"""Seconds between two looks for work that nobody has to ask for."""

_log = structlog.get_logger()


def main() -> None:
    """Open the hub as the environment says and run its jobs until told to stop."""
    stop = threading.Event()
    stop_on_signals(stop)
    settings = Settings()
    logging.configure(settings)
    hub = open_hub(settings)
    try:
        serve(hub.jobs, handlers_of(hub), sys.argv[1], stop, submit_due=partial(xet_retention.submit_due, hub))
    finally:
        hub.db.close()


def handlers_of(hub: Hub) -> Mapping[str, Handler]:
    """Every kind of job, joined with what computes it."""
    threads = threads_of(hub.settings.threads)
    run_engine = partial(engine.run, threads=threads)
    reproduce = partial(reproductions.run, hub, engine=run_engine, comparer=reproduction.verdict)
    return {
        merges.KIND: before(hub, merges.inputs, partial(merges.run, hub, engine=run_engine)),
        reproductions.KIND: before(hub, reproductions.inputs, reproduce),
        ports.KIND: before(hub, ports.inputs, partial(ports.run, hub, porter=porting.port, reporter=portability)),
        tunings.KIND: before(hub, tunings.inputs, partial(tunings.run, hub, bench=_bench(hub.settings))),
        ingest.FINGERPRINT_JOB: before(hub, fingerprints.inputs, partial(fingerprints.run, hub)),
        layers.KIND: before(hub, layers.inputs, partial(layers.run, hub, layer_norms=layer_norms)),
        mirror_inputs.KIND: partial(mirror_inputs.run, hub),
        xet_retention.KIND: partial(xet_retention.run, hub),
        webhook_events.KIND: partial(webhooks.run, hub),
    }


def _bench(settings: Settings) -> Callable[[Input], tunings.Bench]:
    """Puts a base into memory to score recipes on."""

    def bench(base: Input) -> tunings.Bench:
        # most workers never score, and transformers takes seconds to load
        from adapterhub.hub.serving.scoring import Bench

        return Bench(base, settings.device)

    return bench


def serve(
    queue: JobQueue,
    handlers: Mapping[str, Handler],
    worker: str,
    stop: threading.Event,
    *,
    submit_due: Callable[[], object] = lambda: None,
) -> None:
    """Lease and run jobs, one after another, until `stop` is set; `submit_due` is called when there is nothing else."""
    next_look = 0.0
    while not stop.is_set():
        try:
            job = queue.lease(worker)
            if job is None:
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + DUE_S
                    submit_due()
                stop.wait(POLL_S)
                continue
            run(queue, job, handlers, stop)
        except (DatabaseBusy, SQLAlchemyError) as error:
            # a job whose end could not be written is leased again when its lease runs out
            _log.warning("worker.database_unavailable", worker=worker, error=str(error))
            stop.wait(POLL_S * 10)


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` on SIGTERM and when standard input closes."""
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_parent, args=(stop,), name="parent", daemon=True).start()


def _watch_parent(stop: threading.Event) -> None:
    # a pipe that nobody writes to: the read returns when the process at its other end is gone. Unbuffered, because a
    # thread that waits inside a buffered reader holds its lock, and the interpreter aborts when it wants it at its end
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


if __name__ == "__main__":
    main()
