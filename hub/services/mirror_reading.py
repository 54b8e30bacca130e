"""The files of a commit as the algebra reads them, whether their bytes are here or still at another hub.

Of a mirrored file that is not here, headers are read by range where it is; its tensors are not.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import BlobOwner, Mirror, Repository
from adapterhub.hub.errors import Forbidden, NotFetched, OutboundFailed, TooLarge
from adapterhub.hub.services import mirror_tokens, trees
from adapterhub.hub.services.folders import RepositoryFolder
from adapterhub.hub.services.trees import Entry
from adapterhub.hub.services.upstream import ANSWER_S, Upstream
from adapterhub.storage.blobs import PIECE_BYTES, BlobStore

BEGINNING_BYTES = 128 << 10
BEGINNINGS = 512
"""How much is read of a file at first, and how many of these are remembered: the shards of a base are read often."""

HEADER_BYTES = 128 << 20
"""Most bytes of a large file that are read there to learn what it is."""


def folder(session: Session, hub: Hub, repo: Repository, commit: str) -> RepositoryFolder:
    """The files of a commit that the caller may read.

    Reading a mirrored file that is not here raises as `Upstream.open`, and NotFetched for more than headers.
    """
    files = trees.files(session, repo, commit)
    return RepositoryFolder(store(session, hub, repo, commit, files), files)


def store(session: Session, hub: Hub, repo: Repository, commit: str, files: Iterable[Entry]) -> BlobStore:
    """The store in which those files of a commit are read."""
    away = {entry.digest: entry for entry in absent(session, repo, files)}
    if not away:
        return hub.store
    return HeadersThere(hub.store, source(session, hub, repo), commit, away)


def source(session: Session, hub: Hub, repo: Repository) -> Upstream:
    """Where a mirrored repository is, as the first of `sources` is shown it."""
    return sources(session, hub, repo)[0]


def sources(session: Session, hub: Hub, repo: Repository) -> list[Upstream]:
    """Where a mirrored repository is: as everybody is shown it, or as each organisation that proved its access.

    Raises Forbidden where no organisation does any more, SealBroken.
    """
    row = session.get_one(Mirror, repo.id)
    if row.organisation_id is None:
        return [Upstream(hub.settings, row.source_url, row.source_repo_id)]
    found = mirror_tokens.of_repository(session, hub, repo.id, row.source_url, row.source_repo_id)
    if not found:
        raise Forbidden(f"{repo.full_name}: no organisation's token opens it at {row.source_url} any more; set one")
    return found


def absent(session: Session, repo: Repository, files: Iterable[Entry]) -> list[Entry]:
    """Those files that are a mirror's and whose bytes are not here.

    The bytes of an equal digest that another repository owns do not count: a hash that the other hub names opens
    nothing.
    """
    large = [entry for entry in files if entry.is_lfs]
    if not large or session.get(Mirror, repo.id) is None:
        return []
    owned = set(session.exec(select(BlobOwner.digest).where(col(BlobOwner.repository_id) == repo.id)))
    return [entry for entry in large if entry.digest not in owned]


class _Beginnings:
    """The beginnings of files that were read lately, the latest BEGINNINGS of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[str, ...], bytes] = OrderedDict()

    def get(self, key: tuple[str, ...]) -> bytes | None:
        with self._lock:
            return self._kept.get(key)

    def put(self, key: tuple[str, ...], content: bytes) -> None:
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > BEGINNINGS:
                self._kept.popitem(last=False)


_beginnings = _Beginnings()


class HeadersThere:
    """The store, in which files that are not here can be read from their beginning, as far as headers go."""

    def __init__(self, store: BlobStore, upstream: Upstream, commit: str, away: Mapping[str, Entry]) -> None:
        self._store, self._upstream, self._commit, self._away = store, upstream, commit, away
        self._read: dict[tuple[str, int, int], bytes] = {}
        self._until: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def path(self, digest: str) -> Path | None:
        """Where the file lies. Raises NotFetched for one that is not here."""
        entry = self._away.get(digest)
        if entry is None:
            return self._store.path(digest)
        raise NotFetched(f"{self._upstream.repo_id}: the bytes of {entry.path} are at {self._upstream.host}, not here")

    def read(
        self, digest: str, start: int = 0, end: int | None = None, *, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Bytes [start, end), from here, or in one piece from there. Raises TooLarge for more than a header."""
        entry = self._away.get(digest)
        if entry is None:
            return self._store.read(digest, start, end, piece_bytes=piece_bytes)
        end = entry.size_bytes if end is None else min(end, entry.size_bytes)
        if end - start > HEADER_BYTES:
            raise TooLarge(f"{entry.path}: its bytes are at {self._upstream.host} until somebody asks for them")
        if end <= BEGINNING_BYTES:
            return iter([self._beginning(entry)[start:end]])
        key = digest, start, end
        if key not in self._read:
            self._read[key] = self._fetched(entry, start, end)
        return iter([self._read[key]])

    def _beginning(self, entry: Entry) -> bytes:
        """The file's first BEGINNING_BYTES, of which most headers need no more: asked for once, whoever reads them."""
        key = self._upstream.url, self._upstream.repo_id, self._commit, entry.path
        found = _beginnings.get(key)
        if found is None:
            found = self._fetched(entry, 0, min(BEGINNING_BYTES, entry.size_bytes))
            _beginnings.put(key, found)
        return found

    def _fetched(self, entry: Entry, start: int, end: int) -> bytes:
        with self._upstream.open(self._commit, entry.path, start, end, deadline_s=self._left_s()) as pieces:
            return _exactly(pieces, end - start)

    def _left_s(self) -> float:
        """Seconds that are left for all reads there: ANSWER_S from the first. Raises OutboundFailed for none."""
        self._until = self._until or time.monotonic() + ANSWER_S
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise OutboundFailed(
                f"{self._upstream.repo_id}: {self._upstream.host} sends the headers of its files slowly"
            )
        return left_s


def _exactly(pieces: Iterator[bytes], size_bytes: int) -> bytes:
    found = b""
    while len(found) < size_bytes and (piece := next(pieces, None)) is not None:
        found += piece
    return found[:size_bytes]
