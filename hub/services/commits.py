"""Commits: a stream of operations becomes the next state of a branch, whole or not at all.

Bytes are made durable first; then one transaction records the objects and moves the branch by compare-and-set. A commit
without a parent is laid onto whatever the branch holds then; one with a parent is refused when the branch moved.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Commit, Repository, now
from adapterhub.hub.errors import (
    Conflict,
    EntryNotFound,
    HeadMoved,
    InvalidCommit,
    InvalidPath,
    PickleRefused,
    TooLarge,
)
from adapterhub.hub.services import audit, blobs, ingest, refs, repos, revisions, trees, upload_modes
from adapterhub.hub.services.access import Caller, require_write
from adapterhub.hub.services.git_objects import blob_oid, pointer_text
from adapterhub.hub.services.git_patterns import Attributes
from adapterhub.hub.services.names import check_path, is_storable, path_key
from adapterhub.hub.services.trees import Entry
from adapterhub.merging.pickle_names import is_pickle
from adapterhub.storage.blobs import BlobStat, check_digest

REBASES = 64
"""How often a commit without a parent is laid onto a branch that moved; each time, somebody else's went in."""

MESSAGE_CHARACTERS = 64 * 1024


@dataclass(frozen=True)
class AddRegular:
    """A file whose bytes come with the commit."""

    path: str
    content: bytes


@dataclass(frozen=True)
class AddLfs:
    """A large file that this repository already has the right to. size_bytes None: as stored."""

    path: str
    digest: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class AddStored:
    """A file whose bytes the service itself has just put into the store for this commit."""

    path: str
    stat: BlobStat


@dataclass(frozen=True)
class CopyFile:
    """A file of the same repository under a second path. revision None: the branch as the commit finds it."""

    source: str
    path: str
    revision: str | None = None


@dataclass(frozen=True)
class DeleteFile:
    path: str


@dataclass(frozen=True)
class DeleteFolder:
    """A folder with all in it; path with or without a slash at its end."""

    path: str


Operation: TypeAlias = AddRegular | AddLfs | AddStored | CopyFile | DeleteFile | DeleteFolder


@dataclass(frozen=True)
class CommitResult:
    """Where the ref stands. is_new: false when the files were so already and nothing was written."""

    repo_id: str
    ref: str
    oid: str
    is_new: bool

    @property
    def branch(self) -> str:
        """The ref as people call it."""
        return self.ref.removeprefix(refs.BRANCH)


@dataclass
class Place:
    """Where a commit goes, by default onto a branch.

    ref: in full, whose head it is laid onto, or onto the commit `at` where that is said. lands: the ref under which it
    is seen, "" for the same; `publish` may be what finds it. require: passes when the caller may do so. publish: given
    the session, the repository as it is now, the head and the fresh commit, makes the commit visible; false when the
    head moved.
    """

    ref: str
    require: Callable[[Session, Caller, Repository], None]
    publish: Callable[[Session, Repository, str, Commit], bool]
    lands: str = ""
    at: str = ""

    def head(self, session: Session, repo: Repository) -> str:
        """The commit that it is laid onto. Raises RevisionNotFound."""
        return self.at or refs.head(session, repo, self.ref)

    @property
    def name(self) -> str:
        """The ref as people call it."""
        return self.ref.removeprefix(refs.BRANCH)


def on_branch(branch: str) -> Place:
    """The tip of a branch, for those who may write."""
    ref = refs.BRANCH + branch.removeprefix(refs.BRANCH)

    def publish(session: Session, repo: Repository, head: str, commit: Commit) -> bool:
        return refs.move_ref(session, repo, ref, head, commit.oid)

    return Place(ref, require_write, publish)


_Step: TypeAlias = Entry | AddLfs | CopyFile | DeleteFile | DeleteFolder
"""An operation whose own bytes, where it has any, are durable."""


def commit(
    hub: Hub,
    caller: Caller,
    repo_id: str,
    place: str | Place,
    operations: Iterable[Operation],
    summary: str,
    description: str = "",
    parent: str | None = None,
) -> CommitResult:
    """Put `operations`, in their order, onto `place`: a branch by its name, or what `Place` says.

    A commit that is sent again, onto the same parent with the same outcome, is the one that is there. operations: read
    once, one at a time. parent: the commit the caller started from, in full or at least 7 hex.
    Raises RepoNotFound, Forbidden, RevisionNotFound; HeadMoved when the branch is not at `parent`; EntryNotFound for a
    deletion or copy of nothing; InvalidPath, Conflict (two paths that a file system confuses), InvalidCommit (bytes the
    repository has no right to), TooLarge; BrokenContainer, InvalidCard, UnfitPatch. Nothing is visible after any error.
    """
    message = f"{summary}\n\n{description}".strip() or "Update files"
    if len(message) > MESSAGE_CHARACTERS:
        raise TooLarge(f"the commit message: {len(message)} characters, at most {MESSAGE_CHARACTERS} are kept")
    if not is_storable(message):
        raise InvalidCommit("the commit message holds a NUL or half a character; write it anew")
    place = on_branch(place) if isinstance(place, str) else place
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        place.require(session, caller, repo)
        is_repeated = _check_parent(session, repo, place, parent) != place.head(session, repo)
    steps = _make_durable(hub, operations)
    if is_repeated:
        return _repeated(hub, repo, place, steps, parent)
    for _ in range(REBASES):
        done = _attempt(hub, caller, repo, place, steps, message, parent)
        if done is not None:
            return done
        if parent is not None:
            raise HeadMoved(
                f"{repo.full_name}: {place.name} moved away from {parent} meanwhile; fetch it and try again"
            )
    raise HeadMoved(f"{repo.full_name}: {place.name} is written by too many at once; try again")


def _attempt(
    hub: Hub, caller: Caller, repo: Repository, place: Place, steps: list[_Step], message: str, parent: str | None
) -> CommitResult | None:
    """The commit laid onto the place as it stands now; None when that moved before it was written."""
    with hub.db.read() as session:
        head = place.head(session, repo)
        if parent is not None and not _names(parent, head):
            return None
        before, after = _files(hub, session, repo, head, steps)
    if after == before:
        return CommitResult(repo.full_name, place.ref, head, is_new=False)
    oid = write_state(hub, caller, repo, place, before, after, (head,), message)
    return CommitResult(repo.full_name, place.ref, oid, is_new=True) if oid else None


def _repeated(hub: Hub, repo: Repository, place: Place, steps: list[_Step], parent: str | None) -> CommitResult:
    """The head, which is what these steps make of `parent`. Raises HeadMoved where it is not."""
    with hub.db.read() as session:
        head = place.head(session, repo)
        made = session.get_one(Commit, (repo.id, head))
        base = made.parents[0] if made.parents else head
        _, after = _files(hub, session, repo, base, steps)
    if parent is None or not _names(parent, base) or trees.build(after).root != made.tree_oid:
        raise HeadMoved(f"{repo.full_name}: {place.name} is at {head[:12]}, not at {parent}; fetch it and try again")
    return CommitResult(repo.full_name, place.ref, head, is_new=False)


def _files(
    hub: Hub, session: Session, repo: Repository, commit: str, steps: list[_Step]
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The files of a commit by path, as they are and after `steps`."""
    before = trees.by_path(session, repo, commit)
    sent = {step.path: step for step in steps if isinstance(step, Entry)}
    attributes = upload_modes.attributes_of(hub, (before | sent).values())
    return before, _apply(session, repo, commit, before, steps, attributes)


def write_state(
    hub: Hub,
    caller: Caller,
    repo: Repository,
    place: Place,
    before: Mapping[str, Entry],
    after: dict[str, Entry],
    parents: Sequence[str],
    message: str,
) -> str | None:
    """The commit that turns the files `before`, those of its first parent, into `after`; None when the place moved.

    Raises InvalidPath, Conflict, BrokenContainer, InvalidCard, UnfitPatch, PickleRefused, and what the place asks of
    the caller.
    """
    _check_collisions(after)
    if hub.settings.pickles == "refuse":
        _refuse_pickles(before, after)
    head = parents[0]
    draft = revisions.draft(repo, caller, before, after, parents, message)
    learnt = ingest.examine(hub, caller, repo, head, before, after)

    def write(session: Session) -> None:
        present = session.get_one(Repository, repo.id)
        place.require(session, caller, present)
        blobs.record(session, repo.id, map(_stat, draft.files), store=hub.store)
        revisions.write(session, draft)
        if not place.publish(session, present, head, draft.row):
            raise _Moved
        lands = place.lands or place.ref
        ingest.record(session, hub.jobs, present, lands.removeprefix(refs.BRANCH), draft, learnt)
        if lands.startswith(refs.BRANCH):
            present.updated_at = now()
        session.add(present)
        audit.record(
            session,
            caller,
            "repo.commit",
            repo.id,
            present.full_name,
            before=head,
            after=draft.row.oid,
            detail={"ref": lands},
        )

    try:
        hub.db.transact(write)
    except _Moved:
        return None
    return draft.row.oid


class _Moved(Exception):
    """The branch moved between reading and writing; rolls the transaction back."""


def _check_parent(session: Session, repo: Repository, place: Place, parent: str | None) -> str:
    """The head, when `parent` is None or names it; the head's own parent, when it names that. Raises HeadMoved."""
    head = place.head(session, repo)
    if parent is None or _names(parent, head):
        return head
    before = session.get_one(Commit, (repo.id, head)).parents
    if before and _names(parent, before[0]):
        return before[0]
    raise HeadMoved(f"{repo.full_name}: {place.name} is at {head[:12]}, not at {parent}; fetch it")


def _names(text: str, oid: str) -> bool:
    """Whether `text` is that commit id, in full or at least 7 hex of it."""
    return len(text) >= 7 and oid.startswith(text)


def _make_durable(hub: Hub, operations: Iterable[Operation]) -> list[_Step]:
    """The operations with their paths checked and their bytes in the store."""
    steps: list[_Step] = []
    for operation in operations:
        if len(steps) >= hub.settings.commit_max_files:
            raise TooLarge(f"a commit holds at most {hub.settings.commit_max_files} operations; send it in parts")
        steps.append(_prepare(hub, operation))
    return steps


def _prepare(hub: Hub, operation: Operation) -> _Step:
    if isinstance(operation, DeleteFolder):
        operation = replace(operation, path=operation.path.rstrip("/"))
    check_path(operation.path)
    if isinstance(operation, AddRegular):
        stat = blobs.put(hub, operation.content)
        oid = blob_oid(operation.content)
        return _stored_entry(hub, operation.path, stat, oid)
    if isinstance(operation, AddStored):
        small = operation.stat.size_bytes <= hub.settings.regular_max_bytes
        content = b"".join(hub.store.read(operation.stat.digest)) if small else b""
        return _stored_entry(hub, operation.path, operation.stat, blob_oid(content))
    return operation


def _stored_entry(hub: Hub, path: str, stat: BlobStat, oid: str) -> Entry:
    """The file as git holds it: itself up to regular_max_bytes, a pointer above. oid: of the file itself."""
    if stat.size_bytes <= hub.settings.regular_max_bytes:
        return Entry(path, oid, stat.size_bytes, stat.digest)
    return _lfs_entry(path, stat.digest, stat.size_bytes)


def _lfs_entry(path: str, digest: str, size_bytes: int) -> Entry:
    return Entry(path, blob_oid(pointer_text(digest, size_bytes)), size_bytes, digest, is_lfs=True)


def _apply(
    session: Session,
    repo: Repository,
    head: str,
    before: dict[str, Entry],
    steps: list[_Step],
    attributes: Attributes,
) -> dict[str, Entry]:
    """The files after `steps`, by path; those of them that the attributes call large as pointers, however they came."""
    state = dict(before)
    for step in steps:
        if isinstance(step, DeleteFile):
            if state.pop(step.path, None) is None:
                raise _missing(repo, step.path, head)
        elif isinstance(step, DeleteFolder):
            inside = [p for p in state if p.startswith(step.path + "/")]
            if not inside:
                raise _missing(repo, step.path, head)
            for path in inside:
                del state[path]
        else:
            added = _added(session, repo, head, state, step)
            if not added.is_lfs and added.size_bytes and attributes.is_large(added.path):
                added = _lfs_entry(added.path, added.digest, added.size_bytes)
            state[added.path] = added
    return state


def _added(
    session: Session, repo: Repository, head: str, state: dict[str, Entry], step: Entry | AddLfs | CopyFile
) -> Entry:
    if isinstance(step, Entry):
        return step
    if isinstance(step, AddLfs):
        blob = blobs.owned(session, repo.id, check_digest(step.digest))
        if blob is None:
            raise InvalidCommit(f"{step.path}: {step.digest} was not uploaded to {repo.full_name}; upload it first")
        if step.size_bytes not in (None, blob.size_bytes):
            raise InvalidCommit(f"{step.path}: announced with {step.size_bytes} bytes, {blob.size_bytes} arrived")
        return _lfs_entry(step.path, blob.digest, blob.size_bytes)
    if step.revision is None:
        source = state.get(step.source)
        if source is None:
            raise _missing(repo, step.source, head)
    else:
        source = trees.entry(session, repo, refs.resolve(session, repo, step.revision), step.source)
        if source.is_folder:
            raise InvalidCommit(f"{step.source}: a folder; copy its files one by one")
    return replace(source, path=step.path)


def _missing(repo: Repository, path: str, head: str) -> EntryNotFound:
    return EntryNotFound(repo.full_name, path, head)


def _check_collisions(entries: dict[str, Entry]) -> None:
    """Refuse a path that is a file and a folder at once, or that a file system takes for another one."""
    seen: dict[str, str] = {}
    for path in entries:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            part = "/".join(parts[:depth])
            if depth < len(parts) and part in entries:
                raise InvalidPath(f"{path}: {part} is a file and cannot be a folder too; delete it in the same commit")
            other = seen.setdefault(path_key(part), part)
            if other != part:
                raise Conflict(f"{part}: some file systems take it for {other}, which the repository holds already")


def _stat(entry: Entry) -> BlobStat:
    return BlobStat(entry.digest, entry.size_bytes, 0.0)


def _refuse_pickles(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> None:
    """Raises PickleRefused where a commit adds or changes a file that is a pickle by its name; old ones may stay."""
    for path, entry in after.items():
        if is_pickle(path) and before.get(path) != entry:
            raise PickleRefused(
                f"{path}: a pickle by its name, which runs code when it is loaded, and this hub takes none; "
                "save the tensors as safetensors and leave the file out of the push"
            )
