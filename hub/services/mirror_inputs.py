"""What work reads of mirrors, brought here before the work begins.

A job brings its own inputs, with progress (`before`). The web process brings none for a merge or an answer: it queues a
job that does, and says that trying again later will help.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Mirror, Repository, now
from adapterhub.hub.errors import NotFetched, OutboundFailed
from adapterhub.hub.jobs.runner import Handler, Report
from adapterhub.hub.services import mirror_files, mirror_reading, trees
from adapterhub.hub.services.trees import Entry

KIND = "mirror_fetch"

NEVER_OPENED = (
    *(".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".ot"),
    *(".gguf", ".onnx", ".onnx_data", ".tflite"),
)
"""Suffixes of weights that nothing here opens: they come when a client asks for them."""

AFRESH = timedelta(seconds=30)
"""How long after a failed download the same is not begun again for who asks."""


@dataclass(frozen=True)
class Wanted:
    """Files that work reads: those of a commit at or below a folder, "" for all of it."""

    repo: Repository
    commit: str
    path: str = ""


def before(hub: Hub, inputs: Callable[[Hub, Job], Sequence[Wanted]], handler: Handler) -> Handler:
    """`handler`, begun when what `inputs` names for the job is here."""

    def run(job: Job, report: Report) -> Mapping[str, Any]:
        bring(hub, inputs(hub, job), report)
        return handler(job, report)

    return run


def bring(hub: Hub, wanted: Sequence[Wanted], report: Report) -> int:
    """Have all that is wanted here, to stay for an hour; the bytes that had to come. Raises as `mirror_files.fetch`."""
    with hub.db.read() as session:
        left = [(one, entry) for one in wanted for entry in _absent(session, one)]
    total, done = sum(entry.size_bytes for _, entry in left), 0
    for one, entry in left:
        message = f"fetching {one.repo.full_name}/{entry.path}"

        def told(received: int, done: int = done, message: str = message) -> None:
            report.progress(done + received, total, "bytes", message)

        mirror_files.fetch(hub, one.repo, one.commit, entry, told=told, cancelled=report.cancelled)
        done += entry.size_bytes
    for one in wanted:
        mirror_files.touch_all(hub, one.repo.id)
    return total


def require(hub: Hub, wanted: Sequence[Wanted]) -> None:
    """Pass when all that is wanted is here, else have a job bring it.

    Raises NotFetched, which says how far that is; OutboundFailed where it has just failed.
    """
    with hub.db.read() as session:
        away = [(one, left, session.get_one(Mirror, one.repo.id)) for one in wanted if (left := _absent(session, one))]
    refusals = [_on_its_way(hub, one, left, source.source_url) for one, left, source in away]
    if refusals:
        raise refusals[0]
    for one in wanted:
        mirror_files.touch_all(hub, one.repo.id)


def job_inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What a job of this KIND brings."""
    asked = job.payload
    with hub.db.read() as session:
        repo = session.get_one(Repository, str(asked["repository_id"]))
    return [Wanted(repo, str(asked["commit"]), str(asked["path"]))]


def run(hub: Hub, job: Job, report: Report) -> Mapping[str, Any]:
    """The bytes that the job brought here."""
    return {"size_bytes": bring(hub, job_inputs(hub, job), report)}


def _absent(session: Session, one: Wanted) -> list[Entry]:
    prefix = f"{one.path}/" if one.path else ""
    files = trees.files(session, one.repo, one.commit)
    read = (e for e in files if e.path.startswith(prefix) and not e.path.endswith(NEVER_OPENED))
    return mirror_reading.absent(session, one.repo, read)


def _on_its_way(hub: Hub, one: Wanted, left: Sequence[Entry], url: str) -> NotFetched | OutboundFailed:
    key = f"{one.repo.id}@{one.commit}/{one.path}"
    last = hub.jobs.latest(KIND, key)
    if last is not None and last.state == "failed" and last.finished_at and last.finished_at > now() - AFRESH:
        return OutboundFailed(f"{one.repo.full_name}: {(last.error or {}).get('message')}", retry_after_s=30)
    payload = {"repository_id": one.repo.id, "commit": one.commit, "path": one.path}
    job = hub.jobs.submit(KIND, payload, key=key)
    done, total = job.progress.get("done", 0), sum(entry.size_bytes for entry in left)
    return NotFetched(
        f"{one.repo.full_name}: {len(left)} of its files, {total} bytes, come from {url} first; "
        f"{done} bytes are here; try again later",
        retry_after_s=10,
    )
