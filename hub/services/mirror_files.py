"""The bytes of mirrored files: fetched when first asked for, verified, kept, and let go of by age.

A large file of a mirror is announced by a row of `Blob` whose codec is "remote"; its bytes are here when the repository
owns the blob (`BlobOwner`), and that row is written after they are durable.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Blob, BlobOwner, Mirror, MirrorBlob, Repository, Xorb, now
from adapterhub.hub.errors import OutboundFailed
from adapterhub.hub.services import blobs
from adapterhub.hub.services.git_objects import blob_oid
from adapterhub.hub.services.trees import Entry
from adapterhub.hub.services.upstream import Upstream
from adapterhub.storage.blobs import BlobStat, BlobWriter
from adapterhub.storage.errors import DigestMismatch

BREAKS = 3
"""How often in a row a download may break off without a byte more."""

KEPT = timedelta(hours=1)
"""How long bytes stay at least: whoever asked for them is still reading."""

TOUCHED = timedelta(minutes=10)
"""How exactly the last use of a file is known."""


class Turns:
    """One at a time for each key, in this process."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[tuple[str, ...], tuple[threading.Lock, int]] = {}

    @contextmanager
    def turn(self, *key: str) -> Iterator[None]:
        """The time in which no other is inside with that key."""
        with self._guard:
            lock, waiting = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, waiting = self._locks.pop(key)
                if waiting > 1:
                    self._locks[key] = lock, waiting - 1


_turns = Turns()


def is_absent(session: Session, repo: Repository, entry: Entry) -> bool:
    """Whether the file is a mirror's and its bytes are not here."""
    if not entry.is_lfs or session.get(Mirror, repo.id) is None:
        return False
    return blobs.owned(session, repo.id, entry.digest) is None


def fetch(hub: Hub, repo: Repository, commit: str, entry: Entry) -> None:
    """Have the bytes of a mirrored file here; those who ask at once share one download.

    The bytes of an equal digest that another repository owns are not used: a hash that the other hub names opens
    nothing. Raises OutboundFailed, WrongUpstream, and as `Upstream.open`.
    """
    with _turns.turn(str(hub.settings.data), repo.id, entry.digest):
        with hub.db.read() as session:
            if not is_absent(session, repo, entry):
                return
            source = session.get_one(Mirror, repo.id)
        upstream = Upstream(hub.settings, source.source_url, source.source_repo_id)
        with hub.store.writer() as writer:
            _download(upstream, commit, entry, writer)
            try:
                stat = writer.commit(entry.digest)
            except DigestMismatch:
                raise upstream.wrong(f"sends other bytes than it names as {entry.path}") from None
        hub.db.transact(lambda session: _link(hub, session, repo, stat))
    make_room(hub)


def regular(upstream: Upstream, commit: str, entry: Entry) -> bytes:
    """The content of a regular file, which has git's id. Raises as `fetch`."""
    with upstream.open(commit, entry.path, 0, entry.size_bytes) as pieces:
        content = b"".join(pieces)
    if len(content) != entry.size_bytes or blob_oid(content) != entry.oid:
        raise upstream.wrong(f"sends other bytes than it names as {entry.path}")
    return content


def touch(hub: Hub, repository_id: str, digest: str) -> None:
    """Remember that a mirrored file was read."""

    def work(session: Session) -> None:
        row = session.get(MirrorBlob, (repository_id, digest))
        if row is not None:
            row.used_at = now()
            session.add(row)

    with hub.db.read() as session:
        row = session.get(MirrorBlob, (repository_id, digest))
    if row is not None and row.used_at < now() - TOUCHED:
        hub.db.transact(work)


def make_room(hub: Hub) -> int:
    """Bytes let go of, those longest unused first, until mirrored ones fit `mirror_max_bytes`. Pinned ones stay."""
    with hub.db.read() as session:
        held = session.exec(
            select(MirrorBlob, Blob.size_bytes, Mirror.is_pinned)
            .join(Blob, col(Blob.digest) == col(MirrorBlob.digest))
            .join(Mirror, col(Mirror.repository_id) == col(MirrorBlob.repository_id))
            .order_by(col(MirrorBlob.used_at))
        ).all()
    over = sum(size for _, size, _ in held) - hub.settings.mirror_max_bytes
    freed = 0
    for row, size, is_pinned in held:
        if over <= 0:
            break
        if not is_pinned and let_go(hub, row.repository_id, row.digest):
            over -= size
            freed += size
    return freed


def let_go(hub: Hub, repository_id: str, digest: str) -> bool:
    """Whether a mirrored file's bytes are no longer the repository's, who will fetch them anew when asked.

    They leave the store too, inside the transaction that holds their row, unless another repository owns them: whoever
    stores the same bytes meanwhile waits for it, then looks (`blobs.record`), and has them sent again. Bytes that came
    within the hour stay.
    """

    def work(session: Session) -> bool:
        blob = session.exec(select(Blob).where(Blob.digest == digest).with_for_update()).first()
        row = session.get(MirrorBlob, (repository_id, digest))
        owner = session.get(BlobOwner, (repository_id, digest))
        stat = hub.store.stat(digest)
        if blob is None or row is None or (stat and stat.modified_at > (now() - KEPT).timestamp()):
            return False
        session.delete(row)
        if owner is not None:
            session.delete(owner)
        session.flush()
        others = session.exec(select(BlobOwner.digest).where(BlobOwner.digest == digest).limit(1)).first()
        xorbs = session.exec(select(Xorb.digest).where(Xorb.digest == digest).limit(1)).first()
        if others is None and xorbs is None:
            blob.codec = blobs.REMOTE
            session.add(blob)
            session.flush()
            hub.store.delete(digest)
        return True

    return hub.db.transact(work)


def _download(upstream: Upstream, commit: str, entry: Entry, writer: BlobWriter) -> None:
    """Write the file from its first byte to its last, going on where a connection broke off."""
    received, breaks = 0, 0
    while received < entry.size_bytes:
        before = received
        try:
            with upstream.open(commit, entry.path, received, entry.size_bytes) as pieces:
                for piece in pieces:
                    received += len(piece)
                    if received > entry.size_bytes:
                        raise upstream.wrong(f"sends more bytes than it names as {entry.path}")
                    writer.write(piece)
        except OutboundFailed:
            breaks = 0 if received > before else breaks + 1
            if breaks == BREAKS:
                raise
        else:
            if received < entry.size_bytes and received == before:
                raise upstream.wrong(f"sends fewer bytes than it names as {entry.path}")


def _link(hub: Hub, session: Session, repo: Repository, stat: BlobStat) -> None:
    blobs.record(session, repo.id, [stat], store=hub.store)
    row = {"repository_id": repo.id, "digest": stat.digest, "used_at": now()}
    insert_missing(session, MirrorBlob, [row])
