"""Repositories: made, found by any name they had, moved, configured, deleted."""

from sqlalchemy import update
from sqlmodel import Session, col

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Ref, Repository, RepositoryName, RevisionFacts, now
from adapterhub.hub.errors import (
    AccountNotFound,
    Forbidden,
    InvalidRequest,
    NameReserved,
    RepoExists,
    RepoNotFound,
)
from adapterhub.hub.services import accounts, audit, blobs, refs, revisions, search_index
from adapterhub.hub.services.access import (
    Caller,
    require_admin,
    require_namespace,
    require_owner,
    require_read,
    require_signed_in,
)
from adapterhub.hub.services.git_objects import blob_oid
from adapterhub.hub.services.names import check_repo_id, is_storable
from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import BlobStat

GATES = (None, "auto", "manual")

LARGE_FILE_SUFFIXES = (
    *("safetensors", "bin", "pt", "pth", "ckpt", "h5", "onnx", "gguf", "msgpack", "npy", "npz"),
    *("parquet", "arrow", "model", "zip", "gz", "tar"),
)

GITATTRIBUTES = "".join(f"*.{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LARGE_FILE_SUFFIXES).encode()
"""First file of every repository: clients take it for granted that a fresh one has a commit on main."""


def find(session: Session, caller: Caller, repo_id: str) -> Repository:
    """The repository that has or had that name, whatever its case. Its `full_name` tells whether to redirect.

    Raises RepoNotFound where there is none, or none that `caller` may read.
    """
    name = session.get(RepositoryName, repo_id.casefold()) if is_storable(repo_id) else None
    repo = session.get(Repository, name.repository_id) if name else None
    if repo is None:
        raise RepoNotFound(repo_id)
    try:
        require_read(session, caller, repo)
    except RepoNotFound:
        raise RepoNotFound(repo_id) from None  # in the words of the asker: an old name must not tell the present one
    return repo


def create(hub: Hub, caller: Caller, repo_id: str, *, private: bool = False) -> Repository:
    """A fresh repository whose branch main holds one commit.

    Raises NotAuthenticated, Forbidden, InvalidName; RepoExists for a name in use, NameReserved for one that a deleted
    repository had.
    """
    namespace, _ = check_repo_id(repo_id)
    require_signed_in(caller)
    with hub.db.read() as session:
        _owner(session, caller, namespace, repo_id)
    stat = blobs.put(hub, GITATTRIBUTES)

    def write(session: Session) -> Repository:
        repo = begin(session, caller, repo_id, private=private)
        _first_commit(session, caller, repo, stat)
        audit.record(session, caller, "repo.create", repo.id, repo.full_name, detail={"private": private})
        return repo

    return hub.db.transact(write)


def begin(session: Session, caller: Caller, repo_id: str, *, private: bool) -> Repository:
    """A repository of that name in the transaction, with no commit yet. Raises as `create`."""
    namespace, name = check_repo_id(repo_id)
    owner = _owner(session, caller, namespace, repo_id)
    repo = place(session, owner, name, private=private)
    repo.creator_id = caller.account_id
    return repo


def place(
    session: Session, owner: Account, name: str, *, private: bool = False, repository_id: str | None = None
) -> Repository:
    """A repository of that account, whoever asks; repository_id: its id, else a fresh one. Raises RepoExists."""
    repo = Repository(owner_id=owner.id, full_name=f"{owner.name}/{name}", name_key=None, is_private=private)
    repo.id = repository_id or repo.id
    session.add(repo)
    session.flush()
    _take_name(session, repo)
    return repo


def delete(session: Session, caller: Caller, repo_id: str) -> None:
    """Delete a repository; its names stay taken for ever. Raises as `find`, NotAuthenticated, Forbidden."""
    repo = find(session, caller, repo_id)
    require_owner(session, caller, repo)
    repo.deleted_at = now()
    repo.name_key = None
    session.add(repo)
    audit.record(session, caller, "repo.delete", repo.id, repo.full_name)


def move(session: Session, caller: Caller, from_id: str, to_id: str) -> Repository:
    """The repository under its new name; the old one leads to it. Raises as `find` and `create`."""
    repo = find(session, caller, from_id)
    require_owner(session, caller, repo)
    namespace, name = check_repo_id(to_id)
    owner = _owner(session, caller, namespace, to_id)
    before, repo.owner_id, repo.full_name = repo.full_name, owner.id, f"{owner.name}/{name}"
    repo.updated_at = now()
    _take_name(session, repo)
    search_index.rename(session, repo)
    audit.record(session, caller, "repo.move", repo.id, repo.full_name, before=before, after=repo.full_name)
    return repo


def update_settings(
    session: Session,
    caller: Caller,
    repo_id: str,
    *,
    private: bool | None = None,
    gated: str | bool | None = None,
) -> Repository:
    """The repository with those settings changed that are not None. gated: "auto", "manual", or False for not gated.

    Raises as `find`, Forbidden, InvalidRequest.
    """
    repo = find(session, caller, repo_id)
    require_owner(session, caller, repo)
    if private is not None:
        repo.is_private = private
    if gated is not None:
        repo.gated = gated or None  # type: ignore[assignment]
        if repo.gated not in GATES:
            raise InvalidRequest(f'gated {gated!r}: "auto", "manual" or false')
    session.add(repo)
    changed = {"private": private, "gated": gated}
    audit.record(session, caller, "repo.settings", repo.id, repo.full_name, detail=changed)
    return repo


def set_disabled(session: Session, caller: Caller, repo_id: str, reason: str | None) -> None:
    """Close the repository to everybody but administrators, for that reason; None opens it again.

    Raises as `find`, and Forbidden unless `caller` administers the service.
    """
    repo = find(session, caller, repo_id)
    require_admin(caller)
    repo.disabled_at = None if reason is None else now()
    repo.disabled_reason = reason or ""
    session.add(repo)
    deed = "repo.enable" if reason is None else "repo.disable"
    audit.record(session, caller, deed, repo.id, repo.full_name, detail={"reason": reason})


def count_download(session: Session, repository_id: str) -> None:
    """Count one download of the repository."""
    here = col(Repository.id) == repository_id
    session.execute(update(Repository).where(here).values(downloads=col(Repository.downloads) + 1))


def _owner(session: Session, caller: Caller, namespace: str, repo_id: str) -> Account:
    """The account of that namespace, when `caller` may have repositories there."""
    try:
        owner = accounts.find(session, namespace)
    except AccountNotFound:
        raise Forbidden(f"{repo_id}: you ({caller.name}) have no right to the namespace {namespace}") from None
    require_namespace(session, caller, owner.id, f"have repositories in {owner.name}")
    return owner


def _take_name(session: Session, repo: Repository) -> None:
    key = repo.full_name.casefold()
    taken = session.get(RepositoryName, key)
    if taken and taken.repository_id != repo.id:
        holder = session.get_one(Repository, taken.repository_id)
        if holder.deleted_at is None:
            raise RepoExists(repo.full_name)
        raise NameReserved(f"{repo.full_name}: a deleted repository had this name; it is not given again")
    if taken:
        taken.full_name = repo.full_name
    else:
        session.add(RepositoryName(name_key=key, full_name=repo.full_name, repository_id=repo.id))
    repo.name_key = key
    session.add(repo)
    session.flush()


def _first_commit(session: Session, caller: Caller, repo: Repository, stat: BlobStat) -> None:
    blobs.record(session, repo.id, [stat])
    attributes = Entry(".gitattributes", blob_oid(GITATTRIBUTES), stat.size_bytes, stat.digest)
    first = revisions.draft(repo, caller, {}, {attributes.path: attributes}, (), "initial commit")
    revisions.write(session, first)
    target = first.row.oid
    session.add(
        RevisionFacts(repository_id=repo.id, commit_oid=target, kind="unknown", reason="it holds no model and no patch")
    )
    session.add(Ref(repository_id=repo.id, name=refs.BRANCH + repo.default_branch, target_oid=target))
    search_index.index(session, repo, (), "")
