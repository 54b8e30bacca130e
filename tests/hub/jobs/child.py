"""A worker process whose only kind of job waits to be told to stop on its first attempt and ends well on the next."""

import sys
import threading
import time
from typing import Any

from adapterhub.hub.db.engine import Database
from adapterhub.hub.db.tables import Job
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.worker import serve, stop_on_signals
from adapterhub.merging.errors import Cancelled


def hang_once(job: Job, report: Report) -> dict[str, Any]:
    if job.attempts > 1 or job.payload.get("at_once"):
        return {"attempt": job.attempts}
    report.progress(1, 2, "steps")
    while not report.cancelled():
        time.sleep(0.005)
    raise Cancelled("told to stop")


if __name__ == "__main__":
    stop = threading.Event()
    stop_on_signals(stop)
    database = Database(sys.argv[1])
    serve(JobQueue(database), {"hang": hang_once}, sys.argv[2], stop)
    database.close()
