"""The right to bytes: every lookup is (repository, digest). Knowing a hash opens nothing."""

from collections.abc import Iterable, Iterator

from sqlalchemy import update
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Blob, BlobOwner, now
from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import BlobStat

REMOTE = "remote"
"""The codec of a blob that a mirror only announces: its bytes are at another hub, and nobody owns it here."""


def owned(session: Session, repo_id: str, digest: str) -> Blob | None:
    """The blob, when that repository has the right to it; None looks the same for bytes that exist elsewhere."""
    return session.exec(
        select(Blob)
        .join(BlobOwner, col(BlobOwner.digest) == col(Blob.digest))
        .where(BlobOwner.repository_id == repo_id, BlobOwner.digest == digest)
    ).first()


def record(session: Session, repo_id: str, stats: Iterable[BlobStat]) -> None:
    """Give the repository the right to blobs that it has just proven to possess; their bytes are durable already.

    Linking again renews `linked_at`, which garbage collection respects.
    """
    found = {stat.digest: stat for stat in stats}
    insert_missing(session, Blob, [{"digest": s.digest, "size_bytes": s.size_bytes} for s in found.values()])
    announced = col(Blob.digest).in_(found) & (col(Blob.codec) == REMOTE)
    session.execute(update(Blob).where(announced).values(codec="raw", created_at=now()))
    at = now()
    insert_missing(session, BlobOwner, [{"repository_id": repo_id, "digest": d, "linked_at": at} for d in found])
    mine = (col(BlobOwner.repository_id) == repo_id) & col(BlobOwner.digest).in_(found)
    session.execute(update(BlobOwner).where(mine).values(linked_at=at))


def open_file(hub: Hub, entry: Entry, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Bytes [start, end) of a file, in pieces. `entry` comes from a repository that the caller may read.

    Raises BlobNotFound and RangeNotSatisfiable at the call.
    """
    return hub.store.read(entry.digest, start, end)


def put(hub: Hub, content: bytes) -> BlobStat:
    """The digest and size of `content`, now durable in the store; `record` makes it somebody's."""
    with hub.store.writer() as writer:
        writer.write(content)
        return writer.commit()
