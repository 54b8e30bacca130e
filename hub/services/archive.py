"""A revision as one tar, in bounded memory: headers are made on the way and contents come from the store in pieces."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Commit, Repository
from adapterhub.hub.services import blobs, mirror_reading, refs, repos, trees
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.trees import Entry

END = bytes(2 * tarfile.BLOCKSIZE)
"""Two empty blocks end a tar."""


@dataclass(frozen=True)
class Archive:
    """The tar of one revision. folder: the one folder in it, which also names the file."""

    commit: str
    folder: str
    members: tuple[tuple[Entry, bytes], ...]
    """Each file and its tar header."""
    repo: Repository
    absent: tuple[Entry, ...]
    """Files of a mirror that are not here, and must be before `pieces`."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tar."""
        return sum(len(header) + _padded(entry.size_bytes) for entry, header in self.members) + len(END)

    def pieces(self, hub: Hub) -> Iterator[bytes]:
        """The bytes of the tar; the same at every call. Raises BlobNotFound at the first piece of a file."""
        for entry, header in self.members:
            yield header
            if entry.size_bytes:
                yield from blobs.open_file(hub, entry)
            yield bytes(_padded(entry.size_bytes) - entry.size_bytes)
        yield END


def of_revision(session: Session, caller: Caller, repo_id: str, revision: str | None) -> Archive:
    """The tar of what `revision` holds, its times those of the commit. Raises RepoNotFound, RevisionNotFound."""
    repo = repos.find(session, caller, repo_id)
    require_content(session, caller, repo)
    commit = refs.resolve(session, repo, revision)
    at = int(session.get_one(Commit, (repo.id, commit)).committed_at.timestamp())
    folder = f"{repo.full_name.rpartition('/')[2]}-{commit[:12]}"
    entries = trees.files(session, repo, commit)
    members = tuple((entry, _header(folder, entry, at)) for entry in entries)
    return Archive(commit, folder, members, repo, tuple(mirror_reading.absent(session, repo, entries)))


def _header(folder: str, entry: Entry, at: int) -> bytes:
    member = tarfile.TarInfo(f"{folder}/{entry.path}")
    member.size, member.mtime = entry.size_bytes, at
    return member.tobuf(tarfile.PAX_FORMAT)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
