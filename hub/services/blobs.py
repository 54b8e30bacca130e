"""The right to bytes: every lookup is (repository, digest). Knowing a hash opens nothing."""

from collections.abc import Collection, Iterable, Iterator

from sqlalchemy import update
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Blob, BlobOwner, now
from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import BlobStat, BlobStore
from adapterhub.storage.errors import StoreUnavailable

REMOTE = "remote"
"""The codec of a blob that a mirror only announces: its bytes are at another hub, and nobody owns it here."""


def owned(session: Session, repo_id: str, digest: str) -> Blob | None:
    """The blob, when that repository has the right to it; None looks the same for bytes that exist elsewhere."""
    return session.exec(
        select(Blob)
        .join(BlobOwner, col(BlobOwner.digest) == col(Blob.digest))
        .where(BlobOwner.repository_id == repo_id, BlobOwner.digest == digest)
    ).first()


def record(session: Session, repo_id: str, stats: Iterable[BlobStat], *, store: BlobStore | None = None) -> None:
    """Give the repository the right to blobs that it has just proven to possess; their bytes are durable already.

    Linking again renews `linked_at`, which garbage collection respects. store: where they are; given wherever they came
    without a lock, since a mirror may have let equal ones go since. Raises StoreUnavailable then: they are to be sent
    again.
    """
    found = {stat.digest: stat for stat in stats}
    insert_missing(session, Blob, [{"digest": s.digest, "size_bytes": s.size_bytes} for s in found.values()])
    if store is not None:
        _require_bytes(session, store, found)
    announced = col(Blob.digest).in_(found) & (col(Blob.codec) == REMOTE)
    session.execute(update(Blob).where(announced).values(codec="raw", created_at=now()))
    at = now()
    insert_missing(session, BlobOwner, [{"repository_id": repo_id, "digest": d, "linked_at": at} for d in found])
    mine = (col(BlobOwner.repository_id) == repo_id) & col(BlobOwner.digest).in_(found)
    session.execute(update(BlobOwner).where(mine).values(linked_at=at))


def _require_bytes(session: Session, store: BlobStore, digests: Collection[str]) -> None:
    """Pass when none of them was let go of since it was stored; their rows are locked until the transaction ends."""
    query = select(Blob).where(col(Blob.digest).in_(digests)).order_by(col(Blob.digest)).with_for_update(read=True)
    for blob in session.exec(query.execution_options(populate_existing=True)):
        if blob.codec == REMOTE and store.stat(blob.digest) is None:
            raise StoreUnavailable(f"{blob.digest} was removed while it arrived; send it again")


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
