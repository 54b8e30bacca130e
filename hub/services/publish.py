"""Results of jobs on their way into a repository: stored, then committed with everything that hangs on them."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job
from adapterhub.hub.errors import RefExists, RepoExists, RepoNotFound
from adapterhub.hub.services import accounts, commits, refs, repos, trees
from adapterhub.hub.services.access import Caller, require_namespace, require_write
from adapterhub.hub.services.names import check_repo_id
from adapterhub.hub.services.wiring import SPOOL_FOLDER
from adapterhub.merging.errors import PlanTooLarge
from adapterhub.merging.folders import file_digest
from adapterhub.merging.results import ResultFile

_RESULT_SUFFIXES = (".safetensors", ".safetensors.index.json", "adapter_config.json", "patch.json")
"""Files of an earlier result that would contradict the new one when left beside it."""


class Written(Protocol):
    """A file that a job wrote: path inside its folder, bytes, and "sha256:<hex>"."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def digest(self) -> str: ...


@contextmanager
def workplace(hub: Hub, job: Job) -> Iterator[Path]:
    """A path at which the job may make a folder of results, gone afterwards.

    Of what a killed attempt left only the engine's hidden folders stay, from which it goes on.
    """
    folder = hub.settings.data / SPOOL_FOLDER / f"job-{job.id}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.is_dir() and not left.name.endswith(".partial"):
            shutil.rmtree(left, ignore_errors=True)
        elif not left.is_dir():
            left.unlink()
    try:
        yield folder / "result"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_target(hub: Hub, caller: Caller, repo_id: str) -> None:
    """Pass when `caller` may commit to that repository, or make it. Raises Forbidden, NotAuthenticated, InvalidName."""
    namespace, _ = check_repo_id(repo_id)
    with hub.db.read() as session:
        try:
            require_write(session, caller, repos.find(session, caller, repo_id))
        except RepoNotFound:
            owner = accounts.find(session, namespace)
            require_namespace(session, caller, owner.id, f"create {repo_id}")


def require_room(hub: Hub, size_bytes: int) -> None:
    """Pass when a result of that size fits where jobs work. Raises PlanTooLarge, with both sizes, before any work."""
    free = shutil.disk_usage(hub.settings.data).free
    if size_bytes > free:
        raise PlanTooLarge(
            f"the result takes {size_bytes} bytes, and {free} are free in the data folder; make room there, or ask for "
            "a patch (--as lora) or a smaller dtype"
        )


def to_repository(
    hub: Hub,
    caller: Caller,
    repo_id: str,
    folder: Path,
    files: Sequence[Written],
    message: str,
    *,
    private: bool = False,
) -> commits.CommitResult:
    """The files, as the new content of branch main of a repository that is made where there is none.

    Weights and configurations of an earlier result that the new one lacks are removed in the same commit.
    """
    _create_missing(hub, caller, repo_id, private=private)
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        present = [e.path for e in trees.files(session, repo, refs.branch_head(session, repo, "main"))]
    kept = {file.name for file in files}
    stale = [path for path in present if path not in kept and path.endswith(_RESULT_SUFFIXES)]
    operations = [*map(commits.DeleteFile, stale), *_stored(hub, folder, files)]
    return commits.commit(hub, caller, repo_id, "main", operations, message)


def to_branch(
    hub: Hub,
    caller: Caller,
    repo_id: str,
    branch: str,
    start: str,
    folder: Path,
    files: Sequence[Written],
    message: str,
) -> commits.CommitResult:
    """The files, laid onto a branch that begins at the commit `start` where it is not there yet."""
    with suppress(RefExists):
        hub.db.transact(
            lambda session: refs.create_branch(session, caller, repos.find(session, caller, repo_id), branch, start)
        )
    return commits.commit(hub, caller, repo_id, branch, _stored(hub, folder, files), message)


def rewritten(folder: Path, files: Sequence[Written], name: str, text: str) -> list[Written]:
    """The files, one of them now holding `text`."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    fresh = ResultFile(name, path.stat().st_size, file_digest(path))
    return [fresh if file.name == name else file for file in files]


def _create_missing(hub: Hub, caller: Caller, repo_id: str, *, private: bool) -> None:
    """Who may write to a repository needs no right to make others beside it."""
    try:
        with hub.db.read() as session:
            repos.find(session, caller, repo_id)
    except RepoNotFound:
        with suppress(RepoExists):
            repos.create(hub, caller, repo_id, private=private)


def _stored(hub: Hub, folder: Path, files: Iterable[Written]) -> list[commits.Operation]:
    return [
        commits.AddStored(file.name, hub.store.put_file(folder / file.name, expected=file.digest)) for file in files
    ]
