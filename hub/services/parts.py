"""Files that arrive in parts over our own REST: kept until they are whole, then one commit.

The bytes that arrived lie in a file of the data folder; its length is the offset from which to go on, also after the
service died. A lock on the file keeps two senders of one file apart.
"""

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Repository, UploadSession
from adapterhub.hub.errors import Conflict, OffsetMismatch, TooLarge, UploadNotFound
from adapterhub.hub.services import commits, refs, repos
from adapterhub.hub.services.access import Caller, require_write
from adapterhub.hub.services.names import check_path
from adapterhub.storage.blobs import BlobStat

FOLDER = "uploads"
"""Folder, inside the data folder, of files on their way."""


@dataclass(frozen=True)
class Target:
    """Where a file shall go; the caller has the right to write there."""

    caller: Caller
    repo: Repository
    branch: str
    path: str


@dataclass(frozen=True)
class Stored:
    """A file that is part of a commit."""

    path: str
    size_bytes: int
    digest: str
    commit: str


def check_target(hub: Hub, caller: Caller, repo_id: str, branch: str | None, path: str) -> Target:
    """Where the file shall go, checked before its bytes are taken. branch None: the default one.

    Raises RepoNotFound, NotAuthenticated, Forbidden, RevisionNotFound, InvalidPath.
    """
    check_path(path)
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        require_write(session, caller, repo)
        branch = branch or repo.default_branch
        refs.branch_head(session, repo, branch)
        return Target(caller, repo, branch, path)


def offset(hub: Hub, target: Target) -> tuple[int, int]:
    """Bytes of the file that arrived, and bytes in all. Raises UploadNotFound where nothing is under way."""
    with hub.db.read() as session:
        row = _row(session, target)
    if row is None:
        raise UploadNotFound(f"{target.path}: no unfinished upload of it by you")
    with suppress(FileNotFoundError):
        return _file(hub, row).stat().st_size, row.size_bytes
    return 0, row.size_bytes


def store(hub: Hub, target: Target, stat: BlobStat, message: str) -> Stored:
    """Commit a file whose bytes are in the store. Raises as `commits.commit`."""
    done = commits.commit(
        hub,
        target.caller,
        target.repo.full_name,
        target.branch,
        [commits.AddStored(target.path, stat)],
        message or f"Upload {target.path}",
    )
    return Stored(target.path, stat.size_bytes, stat.digest, done.oid)


class Part:
    """One part of a file on its way. A context manager: what was written when it ends is kept for the next part."""

    def __init__(self, hub: Hub, target: Target, start: int, total: int) -> None:
        """Go on at byte `start` of `total`; 0 begins anew.

        Raises TooLarge, OffsetMismatch, and Conflict when another sender is at it or another size was announced.
        """
        if total > hub.settings.file_max_bytes:
            raise TooLarge(f"{target.path}: {total} bytes, at most {hub.settings.file_max_bytes} are taken")
        self._hub, self._target = hub, target
        self._row = hub.db.transact(lambda session: _begin(session, target, total, anew=start == 0))
        self._path = _file(hub, self._row)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "r+b")
        try:
            self._claim(start, total)
        except BaseException:
            self._file.close()
            raise

    def _claim(self, start: int, total: int) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{self._target.path}: you are sending this file already; wait for that to end") from None
        if self._row.size_bytes != total:
            raise Conflict(
                f"{self._target.path}: begun with {self._row.size_bytes} bytes, now {total}; begin anew at 0"
            )
        arrived = self._file.seek(0, os.SEEK_END)
        if start not in (0, arrived):
            raise OffsetMismatch(self._target.path, arrived, start)
        self._file.truncate(start)
        self._file.seek(start)

    def write(self, *pieces: bytes) -> None:
        """Append the pieces."""
        self._file.writelines(pieces)

    def arrived(self) -> int:
        """Bytes of the file that are here, now durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def finish(self, expected: str | None, message: str) -> Stored:
        """Commit the file, all of which arrived; nothing of the upload is left, whether it succeeds or not.

        expected: digest that the sender announced. Raises DigestMismatch, and as `commits.commit`.
        """
        self._file.flush()
        try:
            stat = self._hub.store.put_file(self._path, expected=expected)
            return store(self._hub, self._target, stat, message)
        finally:
            self._path.unlink(missing_ok=True)
            self._hub.db.transact(lambda session: _forget(session, self._target))


def _begin(session: Session, target: Target, total: int, *, anew: bool) -> UploadSession:
    row = _row(session, target)
    if row is None:
        fresh = UploadSession(
            repository_id=target.repo.id,
            account_id=str(target.caller.account_id),
            path=target.path,
            branch=target.branch,
            size_bytes=total,
        )
        insert_missing(session, UploadSession, [fresh.model_dump()])
        row = _row(session, target)
        assert row is not None
    if anew:
        row.size_bytes = total
        session.add(row)
    return row


def _row(session: Session, target: Target) -> UploadSession | None:
    return session.exec(
        select(UploadSession).where(
            UploadSession.repository_id == target.repo.id,
            UploadSession.account_id == str(target.caller.account_id),
            UploadSession.branch == target.branch,
            UploadSession.path == target.path,
        )
    ).first()


def _forget(session: Session, target: Target) -> None:
    if row := _row(session, target):
        session.delete(row)


def _file(hub: Hub, row: UploadSession) -> Path:
    return hub.settings.data / FOLDER / row.id
