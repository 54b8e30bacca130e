"""Large files that arrive in numbered parts, transfer "multipart": each at its place in one file, then checked whole.

The parts of one upload lie in a folder of the data folder, also where blobs rest in S3: `content` holds the bytes, and
`NNNNN` the ETag of each part that is complete. What nobody completes is swept after a day.
"""

import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import new_id
from adapterhub.hub.errors import InvalidRequest, InvalidToken
from adapterhub.hub.services import blobs
from adapterhub.hub.services.lfs import LINK_TTL_S, Ticket
from adapterhub.hub.services.signing import seal, unseal
from adapterhub.storage.errors import DigestMismatch, StoreUnavailable
from adapterhub.storage.spool import write_out

FOLDER = "lfs-parts"
"""Folder, inside the data folder, of uploads on their way."""

ABANDONED_S = 24 * 3600
"""Age, counted from its newest part, at which an upload belongs to nobody any more."""

PARTS = 10_000
"""Most parts of one file: each is a link in the answer. A vast file gets larger parts."""

_PURPOSE = "part upload link"
_CONTENT = "content"


@dataclass(frozen=True)
class Upload:
    """One upload in parts of `part_bytes`, the last one shorter. ticket: what it may store."""

    id: str
    ticket: Ticket
    part_bytes: int

    @property
    def count(self) -> int:
        """The number of parts."""
        return -(-self.ticket.size_bytes // self.part_bytes)

    def size_of(self, number: int) -> int:
        """Bytes of that part, counted from 1. Raises InvalidRequest when there is no such part."""
        if not 1 <= number <= self.count:
            raise InvalidRequest(f"{self.ticket.digest}: part {number} of {self.count}; ask for the links again")
        return min(self.part_bytes, self.ticket.size_bytes - (number - 1) * self.part_bytes)


def is_for(hub: Hub, size_bytes: int) -> bool:
    """Whether a file of that size goes in parts, where the client can do so."""
    return size_bytes >= hub.settings.multipart_min_bytes


def begin(hub: Hub, ticket: Ticket) -> tuple[Upload, str]:
    """An upload of that file, and the signature of all its links. Nothing is stored before the first part comes."""
    part_bytes = max(hub.settings.multipart_part_bytes, -(-ticket.size_bytes // PARTS))
    upload = Upload(new_id(), ticket, part_bytes)
    claims = {
        "upload": upload.id,
        "repo": ticket.repository_id,
        "digest": ticket.digest,
        "size": ticket.size_bytes,
        "part": part_bytes,
    }
    return upload, seal(hub.secret, _PURPOSE, claims, LINK_TTL_S)


def opened(hub: Hub, signature: str, digest: str) -> Upload:
    """The upload that a link with that signature is for. Raises InvalidToken when it is not for `digest`, or false."""
    claims = unseal(hub.secret, _PURPOSE, signature)
    if claims["digest"] != digest:
        raise InvalidToken("this upload link is for another file; ask for another")
    return Upload(claims["upload"], Ticket(claims["repo"], claims["digest"], claims["size"]), claims["part"])


class PartWriter:
    """Takes the bytes of one part in order, to their place in the file. Sent again, a part replaces itself."""

    def __init__(self, hub: Hub, upload: Upload, number: int) -> None:
        """Raises InvalidRequest when there is no such part."""
        self._left = upload.size_of(number)
        folder = _folder(hub, upload)
        if not folder.exists():
            sweep(hub.settings.data)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mark = folder / f"{number:05d}"
        self._mark.unlink(missing_ok=True)
        self._file = os.open(folder / _CONTENT, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.lseek(self._file, (number - 1) * upload.part_bytes, os.SEEK_SET)
        self._hash = blake3()
        self._name = f"{upload.ticket.digest}: part {number} of {upload.count}"

    def write(self, *pieces: bytes) -> None:
        """Append the pieces; the caller lets no more come than the part has."""
        for piece in pieces:
            self._hash.update(piece)
        try:
            write_out(self._file, pieces)
        except OSError as error:
            raise StoreUnavailable(f"{self._name}: cannot write: {error.strerror}") from error
        self._left -= sum(map(len, pieces))

    def finish(self) -> str:
        """The ETag of the part, all of which arrived. Raises InvalidRequest when some is missing."""
        if self._left:
            raise InvalidRequest(f"{self._name}: {self._left} bytes are missing; send it again")
        etag = self._hash.hexdigest()
        fresh = self._mark.with_suffix(f".{new_id()}")
        fresh.write_text(etag)
        fresh.replace(self._mark)
        return etag

    def close(self) -> None:
        """Let go of the file; what `finish` did not confirm does not count."""
        os.close(self._file)


def complete(hub: Hub, upload: Upload, parts: Sequence[tuple[int, str]]) -> None:
    """Make the file of all parts durable and give the repository the right to it; again, it changes nothing.

    parts: number and ETag of each, in order. Raises InvalidRequest for parts that are missing, twice there, in another
    order or not of this upload; DigestMismatch, and forgets the upload, when the whole is not the announced file;
    StoreUnavailable, and keeps it.
    """
    if _is_stored(hub, upload):
        return
    folder = _folder(hub, upload)
    try:
        _check(upload, folder, parts)
        stat = hub.store.put_file(folder / _CONTENT, expected=upload.ticket.digest)
    except DigestMismatch:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except (InvalidRequest, FileNotFoundError) as error:
        if _is_stored(hub, upload):  # another request completed it meanwhile
            return
        raise InvalidRequest(str(error)) from None
    hub.db.transact(lambda session: blobs.record(session, upload.ticket.repository_id, [stat], store=hub.store))
    shutil.rmtree(folder, ignore_errors=True)


def sweep(data: Path) -> None:
    """Remove the uploads that nobody went on with for a day."""
    before = time.time() - ABANDONED_S
    for folder in (data / FOLDER).glob("*"):
        with suppress(FileNotFoundError):
            if max(path.stat().st_mtime for path in (folder, *folder.iterdir())) < before:
                shutil.rmtree(folder, ignore_errors=True)


def _is_stored(hub: Hub, upload: Upload) -> bool:
    with hub.db.read() as session:
        return blobs.owned(session, upload.ticket.repository_id, upload.ticket.digest) is not None


def _check(upload: Upload, folder: Path, parts: Sequence[tuple[int, str]]) -> None:
    name = upload.ticket.digest
    if [number for number, _ in parts] != list(range(1, upload.count + 1)):
        raise InvalidRequest(f"{name}: name each of its {upload.count} parts once and in order, 1 to {upload.count}")
    for number, etag in parts:
        mark = folder / f"{number:05d}"
        if not mark.exists():
            raise InvalidRequest(f"{name}: part {number} of {upload.count} did not arrive; send it again")
        if mark.read_text() != _plain(etag):
            raise InvalidRequest(f"{name}: {etag} is not the ETag of part {number} as it arrived; send it again")


def _plain(etag: str) -> str:
    """The ETag without its quotes, which some clients take off."""
    return re.sub(r'^"(.*)"$', r"\1", etag)


def _folder(hub: Hub, upload: Upload) -> Path:
    return hub.settings.data / FOLDER / upload.id
