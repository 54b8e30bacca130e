"""What `git clone` and `git fetch` are sent: dulwich speaks git's protocol, the objects are made of our rows.

Large files are pointers, as git-lfs keeps them. One object at a time is in memory, and the ids of those to send.
Source: git's gitprotocol-pack and gitprotocol-http, versions 0 and 1; a client that offers version 2 falls back.
"""

from collections.abc import Callable, Collection, Iterator
from io import BytesIO
from typing import Any

from dulwich.errors import GitProtocolError, HangupException
from dulwich.object_store import BaseObjectStore
from dulwich.objects import Blob as BlobObject
from dulwich.objects import Commit as CommitObject
from dulwich.objects import Tree as TreeObject
from dulwich.pack import UnpackedObject
from dulwich.protocol import ReceivableProtocol
from dulwich.refs import DictRefsContainer
from dulwich.repo import BaseRepo
from dulwich.server import Backend, UploadPackHandler
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Commit, GitBlob, GitTreeEntry, Repository
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import blobs, refs
from adapterhub.hub.services.git_objects import commit_content, object_oid, pointer_text, tree_content
from adapterhub.hub.services.trees import Entry

SERVICE = b"git-upload-pack"
EMPTY_TREE = object_oid("tree", b"")
"""The folder with nothing in it, of which there are no rows."""

Write = Callable[[bytes], int | None]


def advertise(session: Session, hub: Hub, repo: Repository, write: Write) -> None:
    """Write the refs and what this server is able to do."""
    handler = _handler(_Repo(session, hub, repo), b"", write, advertise_refs=True)
    handler.proto.write_pkt_line(b"# service=" + SERVICE + b"\n")
    handler.proto.write_pkt_line(None)
    handler.handle()


def upload(session: Session, hub: Hub, repo: Repository, body: bytes, write: Write) -> None:
    """Write the answer to one request of a client: acknowledgements, then the pack of what it lacks.

    The caller asked `access` before. Raises InvalidRequest for what is not git's protocol, or asks for a commit that no
    ref points at now.
    """
    try:
        body, shallow = _without_shallow(body)
        _handler(_Repo(session, hub, repo, shallow), body, write, advertise_refs=False).handle()
    except (GitProtocolError, HangupException, AssertionError, ValueError) as error:
        raise InvalidRequest(f"{repo.full_name}: not a request of git: {error}") from error


def _handler(repo: "_Repo", body: bytes, write: Write, *, advertise_refs: bool) -> UploadPackHandler:
    proto = ReceivableProtocol(BytesIO(body).read, write)
    return UploadPackHandler(_OneRepository(repo), ["/"], proto, stateless_rpc=True, advertise_refs=advertise_refs)


def _without_shallow(body: bytes) -> tuple[bytes, set[Any]]:
    """The request without the commits at which a shallow clone ends, and those commits.

    dulwich reads them only from a client that also asks for another depth. Raises GitProtocolError.
    """
    kept, shallow, at = b"", set(), 0
    while at < len(body):
        size = int(body[at : at + 4], 16)
        if size == 0:
            break
        if size < 4:
            raise GitProtocolError(f"a line cannot have the length {size}")
        line = body[at : at + size]
        if line[4:].startswith(b"deepen"):
            return body, set()
        if line[4:].startswith(b"shallow "):
            shallow.add(line[12:].strip())
        else:
            kept += line
        at += size
    return kept + body[at:], shallow


class _Repo(BaseRepo):
    """One repository as dulwich sees it. shallow: commits whose parents the client does not have and does not want."""

    def __init__(self, session: Session, hub: Hub, repo: Repository, shallow: Collection[Any] = ()) -> None:
        found: dict[Any, bytes] = {one.name.encode(): one.target_oid.encode() for one in refs.list_refs(session, repo)}
        default = f"{refs.BRANCH}{repo.default_branch}".encode()
        if default in found:
            found[b"HEAD"] = b"ref: " + default
        store: Any = RowStore(session, hub, repo)
        super().__init__(store, DictRefsContainer(found))
        self._client_shallow = shallow

    def find_missing_objects(self, determine_wants: Any, graph_walker: Any, progress: Any, **options: Any) -> Any:
        """The objects to send, those before the client's shallow commits left out."""
        graph_walker.shallow.update(self._client_shallow)
        return super().find_missing_objects(determine_wants, graph_walker, progress, **options)


class _OneRepository(Backend):
    """A backend that knows one repository, whatever the path."""

    def __init__(self, repo: _Repo) -> None:
        self._repo = repo

    def open_repository(self, path: str) -> Any:
        """The one repository."""
        return self._repo


class RowStore(BaseObjectStore):
    """The git objects of one repository. An id that is not there raises KeyError, as dulwich expects."""

    def __init__(self, session: Session, hub: Hub, repo: Repository) -> None:
        super().__init__()
        self._session, self._hub, self._repo = session, hub, repo

    @property
    def packs(self) -> list[Any]:
        """None: objects rest as rows and blobs."""
        return []

    def contains_loose(self, sha: bytes) -> bool:
        """Whether the repository has that object."""
        oid = _hex(sha)
        return self._commit(oid) is not None or self._tree(oid) is not None or self._blob(oid) is not None

    def get_raw(self, name: bytes) -> tuple[int, bytes]:
        """Type number and content of an object, by its id in 20 bytes or 40 hex. Raises KeyError."""
        oid = _hex(name)
        commit = self._commit(oid)
        if commit is not None:
            who = (commit.author_name, commit.author_email, commit.committed_at)
            return CommitObject.type_num, commit_content(commit.tree_oid, commit.parents, *who, commit.message)
        tree = self._tree(oid)
        if tree is not None:
            return TreeObject.type_num, tree_content(tree)
        blob = self._blob(oid)
        if blob is None:
            raise KeyError(name)
        if blob.is_lfs:
            return BlobObject.type_num, pointer_text(blob.digest, blob.size_bytes)
        entry = Entry("", oid, blob.size_bytes, blob.digest)
        return BlobObject.type_num, b"".join(blobs.open_file(self._hub, entry))

    def iter_unpacked_subset(self, shas: Any, **options: Any) -> Iterator[UnpackedObject]:
        """Nothing: dulwich looks here for deltas to send again, and none are kept."""
        return iter(())

    def _commit(self, oid: str) -> Commit | None:
        return self._session.get(Commit, (self._repo.id, oid))

    def _tree(self, oid: str) -> list[tuple[str, str, str]] | None:
        query = select(GitTreeEntry).where(GitTreeEntry.repository_id == self._repo.id, GitTreeEntry.tree_oid == oid)
        lines = [(line.mode, line.name, line.oid) for line in self._session.exec(query)]
        return lines if lines or oid == EMPTY_TREE else None

    def _blob(self, oid: str) -> GitBlob | None:
        return self._session.get(GitBlob, (self._repo.id, oid))


def _hex(name: bytes) -> str:
    return name.hex() if len(name) == 20 else name.decode("ascii", "replace")
