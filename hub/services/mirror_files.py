"""The bytes of mirrored files: fetched when first asked for, verified, kept, and let go of by age.

A large file of a mirror is announced by a row of `Blob` whose codec is "remote"; its bytes are here when the repository
owns the blob (`BlobOwner`), and that row is written after they are durable.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Blob, BlobOwner, Commit, Mirror, MirrorBlob, Repository, Xorb, now
from adapterhub.hub.errors import OutboundFailed, Refused, RepoNotFound
from adapterhub.hub.services import blobs, flights, ingest, mirror_reading, trees
from adapterhub.hub.services.git_objects import blob_oid
from adapterhub.hub.services.trees import Entry
from adapterhub.hub.services.upstream import ANSWER_S, Upstream
from adapterhub.merging.errors import Cancelled
from adapterhub.storage.blobs import BlobStat, BlobWriter
from adapterhub.storage.errors import DigestMismatch

BREAKS = 3
"""How often in a row a download may break off without a byte more."""

KEPT = timedelta(hours=1)
"""How long bytes stay at least: whoever asked for them is still reading."""

TOUCHED = timedelta(minutes=10)
"""How exactly the last use of a file is known."""


def is_absent(session: Session, repo: Repository, entry: Entry) -> bool:
    """Whether the file is a mirror's and its bytes are not here."""
    return bool(mirror_reading.absent(session, repo, [entry]))


def fetch(
    hub: Hub,
    repo: Repository,
    commit: str,
    entry: Entry,
    *,
    told: Callable[[int], None] = lambda received: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Have the bytes of a mirrored file here; those who ask at once, in whichever process, share one download.

    told: how many bytes came so far. Once a full model's weights are all here, its fingerprint is queued. Raises
    OutboundFailed, WrongUpstream, as `Upstream.open`, and Cancelled when `cancelled()` holds.
    """
    with flights.turn(hub.settings.data, "bytes", repo.id, entry.digest, cancelled=cancelled):
        with hub.db.read() as session:
            if not is_absent(session, repo, entry):
                return
            *others, last = mirror_reading.sources(session, hub, repo)
        for upstream in others:
            with suppress(Refused, RepoNotFound):
                stat = _stored(hub, upstream, commit, entry, told, cancelled)
                break
        else:
            stat = _stored(hub, last, commit, entry, told, cancelled)
        hub.db.transact(lambda session: _link(hub, session, repo, commit, stat))
    make_room(hub)


def place_of(session: Session, repo: Repository, digest: str) -> tuple[str, Entry] | None:
    """A commit of the repository that holds a file of that digest, and the file; None where none does."""
    newest = select(Commit.oid).where(Commit.repository_id == repo.id).order_by(col(Commit.committed_at).desc())
    for commit in session.exec(newest).all():
        for entry in trees.files(session, repo, commit):
            if entry.digest == digest:
                return commit, entry
    return None


def regular(upstream: Upstream, commit: str, entry: Entry) -> bytes:
    """The content of a regular file, which has git's id. Raises as `fetch`."""
    with upstream.open(commit, entry.path, 0, entry.size_bytes, deadline_s=ANSWER_S) as pieces:
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


def touch_all(hub: Hub, repository_id: str) -> None:
    """Remember that all that is here of a mirror is being read."""
    mine = col(MirrorBlob.repository_id) == repository_id
    with hub.db.read() as session:
        longest_unused = session.exec(select(func.min(MirrorBlob.used_at)).where(mine)).one()
    if longest_unused is not None and longest_unused < now() - TOUCHED:
        hub.db.transact(lambda session: session.execute(update(MirrorBlob).where(mine).values(used_at=now())))


def make_room(hub: Hub) -> int:
    """Bytes let go of, those longest unused first, until mirrored ones fit `mirror_max_bytes`.

    Pinned ones stay, and those that were used within the hour.
    """
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
        if not is_pinned and row.used_at < now() - KEPT and let_go(hub, row.repository_id, row.digest):
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


def _stored(
    hub: Hub,
    upstream: Upstream,
    commit: str,
    entry: Entry,
    told: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> BlobStat:
    """The file's bytes, verified and durable. Raises as `fetch`."""
    with hub.store.writer() as writer:
        for received in _download(upstream, commit, entry, writer):
            told(received)
            if cancelled():
                raise Cancelled(f"{upstream.repo_id}/{entry.path}: asked to stop after {received} bytes")
        try:
            return writer.commit(entry.digest)
        except DigestMismatch:
            raise upstream.wrong(f"sends other bytes than it names as {entry.path}") from None


def _download(upstream: Upstream, commit: str, entry: Entry, writer: BlobWriter) -> Iterator[int]:
    """Write the file from its first byte to its last, going on where a connection broke off; the bytes so far."""
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
                    yield received
        except OutboundFailed:
            breaks = 0 if received > before else breaks + 1
            if breaks == BREAKS:
                raise
        else:
            if received < entry.size_bytes and received == before:
                raise upstream.wrong(f"sends fewer bytes than it names as {entry.path}")


def _link(hub: Hub, session: Session, repo: Repository, commit: str, stat: BlobStat) -> None:
    blobs.record(session, repo.id, [stat], store=hub.store)
    row = {"repository_id": repo.id, "digest": stat.digest, "used_at": now()}
    insert_missing(session, MirrorBlob, [row])
    ingest.queue_fingerprint(session, hub.jobs, repo, commit)
