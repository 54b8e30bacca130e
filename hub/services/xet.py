"""Uploads in Xet's form: chunks gathered in xorbs, then a shard that says how files are put together from them.

Files are rebuilt at once into ordinary blobs, checked against their sha256, and given to the repository; xorbs are kept
so that a client may refer to them later, and serve nothing else. A client remembers for weeks what it has sent, by the
address it sent it to. That address therefore names the repository, so that nobody reaches another's chunks by hash, and
an epoch, which is raised when xorbs are dropped.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db import tables
from adapterhub.hub.db.queries import chunks, insert_missing
from adapterhub.hub.db.tables import Repository, XetScope
from adapterhub.hub.errors import InvalidToken, TooLarge
from adapterhub.hub.services import blobs
from adapterhub.hub.services.access import Caller, require_upload
from adapterhub.hub.services.signing import seal, unseal
from adapterhub.storage.blobs import BlobStat
from adapterhub.storage.errors import InvalidXet, StoreUnavailable
from adapterhub.storage.xet.hashes import from_text
from adapterhub.storage.xet.rebuild import BATCH_BYTES, OpenXorb, Xorb, checked_size, rebuild
from adapterhub.storage.xet.shard import FileRecord, parse_shard
from adapterhub.storage.xet.xorb import MAX_WIRE_BYTES, ChunkTable, XorbCheck

TOKEN_TTL_S = 3600

EXPANSION_LIMIT = 1000
"""How many times larger than the xorbs it names the files of a shard may be."""
EXPANSION_FREE_BYTES = 4 << 30
"""What a shard may make without asking for EXPANSION_LIMIT: a large file of one repeated chunk is no attack."""

_PURPOSE = "Xet token"


@dataclass(frozen=True)
class Scope:
    """Where a client's xorbs lie: in one repository, in one epoch."""

    repository_id: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.repository_id}.{self.epoch}"


@dataclass(frozen=True)
class Grant:
    """A token and the scope it opens. expires_at: in seconds since the epoch."""

    scope: Scope
    token: str
    expires_at: int


def grant_upload(session: Session, hub: Hub, caller: Caller, repo: Repository) -> Grant:
    """A token to upload to `repo`. Raises RepoNotFound, NotAuthenticated or Forbidden."""
    require_upload(session, caller, repo)
    insert_missing(session, XetScope, [{"repository_id": repo.id, "epoch": 1}])
    scope = Scope(repo.id, session.get_one(XetScope, repo.id).epoch)
    token = seal(hub.secret, _PURPOSE, {"scope": str(scope)}, TOKEN_TTL_S)
    return Grant(scope, token, int(time.time()) + TOKEN_TTL_S)


def open_scope(hub: Hub, scope: str, token: str) -> Scope:
    """The scope named in an address, when `token` opens it. Raises InvalidToken.

    A token opens the earlier epochs of its repository too: a client whose upload began under one renews its token and
    keeps the address.
    """
    granted, asked = _parsed(unseal(hub.secret, _PURPOSE, token)["scope"]), _parsed(scope)
    if asked.repository_id != granted.repository_id or not 0 < asked.epoch <= granted.epoch:
        raise InvalidToken("this Xet token is for another repository; ask for another")
    return asked


def _parsed(scope: str) -> Scope:
    repository_id, _, epoch = scope.partition(".")
    return Scope(repository_id, int(epoch) if epoch.isascii() and epoch.isdigit() and len(epoch) < 10 else 0)


class XorbWriter:
    """Takes the bytes of one xorb, checked to the last chunk on their way to the store."""

    def __init__(self, hub: Hub, scope: Scope, xorb_hash: str) -> None:
        """Raises InvalidXet when that is no hash."""
        self._hub, self._scope, self._xorb_hash = hub, scope, xorb_hash
        self._announced = from_text(xorb_hash)
        self._check = XorbCheck()
        self._writer = hub.store.writer(limit_bytes=MAX_WIRE_BYTES, made=self._check)

    def write(self, *pieces: bytes) -> None:
        """Append the pieces. Raises InvalidXet, TooLarge."""
        self._writer.write(*pieces)

    def finish(self) -> bool:
        """Whether the xorb, all of which came, is new here; it is durable and remembered when this returns.

        Raises InvalidXet; StoreUnavailable when a sweep removed equal bytes at this very moment, and the xorb is to be
        sent again.
        """
        rows = self._check.finish(self._announced)
        with self._hub.db.read() as session:
            if session.get(tables.Xorb, (self._scope.repository_id, self._scope.epoch, self._xorb_hash)):
                return False
        _remember(self._hub, self._scope, self._xorb_hash, rows, self._writer.commit())
        return True

    def abort(self) -> None:
        """Throw away what `finish` did not store."""
        self._writer.abort()


def _remember(hub: Hub, scope: Scope, xorb_hash: str, rows: bytes, stat: BlobStat) -> None:
    def write(session: Session) -> None:
        insert_missing(session, tables.Blob, [{"digest": stat.digest, "size_bytes": stat.size_bytes}])
        row = tables.Xorb(
            repository_id=scope.repository_id, epoch=scope.epoch, xorb_hash=xorb_hash, digest=stat.digest, chunks=rows
        )
        insert_missing(session, tables.Xorb, [row.model_dump()])

    hub.db.transact(write)
    if hub.store.stat(stat.digest) is None:  # a sweep took it for garbage before the row was there to hold it
        hub.db.transact(lambda session: _forget(session, scope, xorb_hash))
        raise StoreUnavailable(f"xorb {xorb_hash} was removed while it arrived; send it again")


def _forget(session: Session, scope: Scope, xorb_hash: str) -> None:
    session.delete(session.get_one(tables.Xorb, (scope.repository_id, scope.epoch, xorb_hash)))


def put_shard(hub: Hub, scope: Scope, content: bytes | memoryview) -> list[BlobStat]:
    """Those files of a shard that the repository lacked: rebuilt, durable, and the repository's.

    All of them are measured from the chunk tables before one is rebuilt. Raises InvalidXet for a shard that does not
    hold together or names xorbs that were not sent here, DigestMismatch for a file that is not what it says, TooLarge.
    """
    files = parse_shard(content)
    stored = _xorbs(hub, scope, files)
    open_xorb = _opener(hub, stored)
    sizes = [checked_size(file, open_xorb) for file in files]
    _check_sizes(hub, sizes, sum(row.size_bytes for row in stored.values()))
    present = _present(hub, scope, files)
    stats = [
        _rebuild(hub, file, size, open_xorb)
        for file, size in zip(files, sizes, strict=True)
        if (file.digest, size) not in present
    ]
    hub.db.transact(lambda session: blobs.record(session, scope.repository_id, stats, store=hub.store))
    return stats


def _present(hub: Hub, scope: Scope, files: Sequence[FileRecord]) -> set[tuple[str | None, int]]:
    """(digest, size) of those announced files that the repository has the right to already."""
    with hub.db.read() as session:
        found = [blobs.owned(session, scope.repository_id, file.digest) for file in files if file.digest]
    return {(blob.digest, blob.size_bytes) for blob in found if blob}


@dataclass(frozen=True)
class _Stored:
    """A xorb of this scope: its chunk table as kept, the blob it rests in, and that blob's size."""

    rows: bytes
    digest: str
    size_bytes: int


def _xorbs(hub: Hub, scope: Scope, files: Sequence[FileRecord]) -> dict[str, _Stored]:
    """The xorbs of `scope` that the files name, by hash; those it does not have are left out."""
    wanted = {term.xorb_hash for file in files for term in file.terms()}
    found: dict[str, _Stored] = {}
    with hub.db.read() as session:
        for some in chunks(wanted):
            query = (
                select(tables.Xorb, tables.Blob.size_bytes)
                .join(tables.Blob, col(tables.Blob.digest) == col(tables.Xorb.digest))
                .where(
                    tables.Xorb.repository_id == scope.repository_id,
                    tables.Xorb.epoch == scope.epoch,
                    col(tables.Xorb.xorb_hash).in_(some),
                )
            )
            for row, size_bytes in session.exec(query):
                found[row.xorb_hash] = _Stored(row.chunks, row.digest, size_bytes)
    return found


def _opener(hub: Hub, stored: dict[str, _Stored]) -> OpenXorb:
    @cache
    def open_xorb(xorb_hash: str) -> Xorb:
        row = stored.get(xorb_hash)
        if row is None:
            raise InvalidXet(f"xorb {xorb_hash} was never sent to this address, or is gone; upload again")

        def read(start: int, end: int) -> Iterator[bytes]:
            return hub.store.read(row.digest, start, end, piece_bytes=BATCH_BYTES)

        return Xorb(ChunkTable(row.rows), read)

    return open_xorb


def _check_sizes(hub: Hub, sizes: Sequence[int], xorb_bytes: int) -> None:
    limit = hub.settings.file_max_bytes
    if any(size > limit for size in sizes):
        raise TooLarge(f"a file of {max(sizes)} bytes; at most {limit} are taken")
    allowed = max(EXPANSION_FREE_BYTES, EXPANSION_LIMIT * xorb_bytes)
    if sum(sizes) > allowed:
        raise TooLarge(f"{xorb_bytes} bytes of xorbs would become {sum(sizes)}; at most {allowed} are made of them")


def _rebuild(hub: Hub, file: FileRecord, size_bytes: int, open_xorb: OpenXorb) -> BlobStat:
    with hub.store.writer(limit_bytes=size_bytes) as writer:
        for pieces in rebuild(file, open_xorb):
            writer.write(*pieces)
        return writer.commit(file.digest)
