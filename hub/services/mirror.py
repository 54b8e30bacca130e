"""Repositories of another hub, brought here when somebody first reads them, and kept for when that hub is gone.

A mirror is bound for ever to where it came from, and is read-only here. Its commits keep the ids that they have there,
by which clients cache; trees and blobs are our own rows of git's own ids.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
from sqlmodel import Session, select

from adapterhub.errors import AdapterHubError
from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import (
    Account,
    Blob,
    Commit,
    Mirror,
    MirrorCheck,
    Ref,
    Repository,
    RepositoryName,
    now,
)
from adapterhub.hub.errors import (
    Forbidden,
    HubError,
    InvalidName,
    NameReserved,
    NotFetched,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
    Unavailable,
)
from adapterhub.hub.services import audit, blobs, flights, ingest, mirror_files, refs, repos, revisions, trees
from adapterhub.hub.services.access import ANONYMOUS
from adapterhub.hub.services.ingest import Learnt
from adapterhub.hub.services.mirror_reading import HeadersThere
from adapterhub.hub.services.names import check_ref_name, check_repo_id, is_storable, name_key
from adapterhub.hub.services.trees import Entry
from adapterhub.hub.services.upstream import RemoteRevision, Upstream
from adapterhub.storage.blobs import BlobStat

KIND = "mirror"
"""The kind of an account that holds mirrors alone: nobody is it, belongs to it, or has a token of it."""

REGULAR_BYTES = 64 << 20
"""Most bytes of regular files of one revision; they come with the list of files."""

RETRY_S = 30
"""How soon another hub is asked again that did not answer."""

_FULL = re.compile(r"[0-9a-f]{40}")
_log = structlog.get_logger("adapterhub.mirror")


@dataclass(frozen=True)
class _Held:
    """What is here of a repository. repo: None where nothing is; check: the last look at the revision."""

    repo: Repository | None = None
    source: Mirror | None = None
    check: MirrorCheck | None = None
    commit: str | None = None

    @property
    def problem(self) -> str | None:
        """Why this may be an old state of the revision; None where nothing says so."""
        return self.check.problem or None if self.check else None


def ensure(hub: Hub, repo_id: str, revision: str | None) -> str | None:
    """Have that revision of a repository here, if another hub is told of and has it; a warning where it is an old one.

    revision: None for the default branch; a commit's full id is asked for once, all else again after `mirror_ttl_s`.
    Nothing happens for repositories of this hub, names that they had, and namespaces of its accounts. Raises as
    `Upstream.revision`, unless what is here already serves.
    """
    revision = "main" if revision in (None, "HEAD") else str(revision)
    if hub.settings.mirror_url is None or not _is_name(repo_id, revision):
        return None
    held = _held(hub, repo_id, revision)
    if held is None or _serves(hub, revision, held):
        return held.problem if held else None
    with flights.turn(hub.settings.data, "repository", repo_id.casefold()):
        held = _held(hub, repo_id, revision)
        if held is None or _serves(hub, revision, held):
            return held.problem if held else None
        return _look(hub, repo_id, revision, held)


def require_own_history(session: Session, repo: Repository) -> None:
    """Pass when the repository's commits are whole git objects. Raises Forbidden for a mirror.

    Its commits have the ids of objects that are at the other hub alone, so git would refuse them.
    """
    source = session.get(Mirror, repo.id)
    if source is not None:
        raise Forbidden(f"{repo.full_name}: a mirror, whose history is not here; clone it from {source.source_url}")


def _look(hub: Hub, repo_id: str, revision: str, held: _Held) -> str | None:
    """Ask the other hub, and record what it has; the warning that stands when it has not and something is here."""
    url = held.source.source_url if held.source else str(hub.settings.mirror_url).rstrip("/")
    upstream = Upstream(hub.settings, url, held.source.source_repo_id if held.source else repo_id)
    try:
        found = upstream.revision(revision)
        _record(hub, upstream, revision, found, held)
    except HubError as error:
        if held.repo is None or held.commit is None:
            raise
        problem = f"mirror; {upstream.host} did not answer well for {repo_id}; this is what it had before"
        _log.warning("mirror_stale", repo_id=repo_id, revision=revision, upstream=upstream.host, reason=str(error))
        repository_id = held.repo.id
        hub.db.transact(lambda session: _note(session, repository_id, revision, problem))
        return problem
    return None


def _held(hub: Hub, repo_id: str, revision: str) -> _Held | None:
    """What is here of the repository; None where the name is not another hub's to fill."""
    namespace = repo_id.partition("/")[0]
    with hub.db.read() as session:
        name = session.get(RepositoryName, repo_id.casefold())
        if name is None:
            owner = session.exec(select(Account).where(Account.name_key == name_key(namespace))).first()
            return _Held() if owner is None or _is_mirror_of(owner, namespace) else None
        repo = session.get_one(Repository, name.repository_id)
        source = session.get(Mirror, repo.id)
        if source is None or repo.deleted_at is not None:
            return None
        try:
            commit = refs.resolve(session, repo, revision)
        except RevisionNotFound:
            commit = None
        return _Held(repo, source, session.get(MirrorCheck, (repo.id, revision)), commit)


def _is_mirror_of(owner: Account, namespace: str) -> bool:
    return owner.kind == KIND and owner.name.casefold() == namespace.casefold()


def _is_name(repo_id: str, revision: str) -> bool:
    try:
        check_repo_id(repo_id)
        if not _FULL.fullmatch(revision):
            check_ref_name(revision)
    except (InvalidName, NameReserved):
        return False
    return is_storable(revision)


def _serves(hub: Hub, revision: str, held: _Held) -> bool:
    """Whether what is here needs no look at the other hub."""
    return held.commit is not None and (bool(_FULL.fullmatch(revision)) or _is_fresh(hub, held.check))


def _is_fresh(hub: Hub, check: MirrorCheck | None) -> bool:
    if check is None:
        return False
    return now() - check.checked_at < timedelta(seconds=RETRY_S if check.problem else hub.settings.mirror_ttl_s)


def _record(hub: Hub, upstream: Upstream, revision: str, found: RemoteRevision, held: _Held) -> None:
    """Bring the regular files here, and write the repository, commit, trees, facts and ref in one transaction."""
    ref = None if _FULL.fullmatch(revision) else upstream.ref_name(revision, found.commit)
    repo = held.repo or Repository(owner_id="", full_name=found.full_name, name_key=None)
    with hub.db.read() as session:
        is_known = held.repo is not None and session.get(Commit, (repo.id, found.commit)) is not None
    if is_known:
        hub.db.transact(lambda session: _point(session, repo.id, revision, ref, found.commit))
        return
    files = {entry.path: entry for entry in _with_regular_files(hub, upstream, found)}
    draft = _draft(upstream, repo, found, files)
    learnt = _learn(hub, upstream, repo, found.commit, files)
    branch = ref.removeprefix(refs.BRANCH) if ref and ref.startswith(refs.BRANCH) else ""

    def write(session: Session) -> None:
        present = session.get(Repository, repo.id) or _begin(session, upstream, repo.id, found.full_name)
        large = [e for e in files.values() if e.is_lfs]
        announced = ({"digest": e.digest, "size_bytes": e.size_bytes, "codec": blobs.REMOTE} for e in large)
        insert_missing(session, Blob, announced)
        blobs.record(
            session,
            repo.id,
            (BlobStat(e.digest, e.size_bytes, 0.0) for e in files.values() if not e.is_lfs),
            store=hub.store,
        )
        revisions.write(session, draft)
        ingest.record(session, hub.jobs, present, branch, draft, learnt, looks_at_tensors=False)
        ingest.queue_fingerprint(session, hub.jobs, present, found.commit)
        present.updated_at = max(found.committed_at, present.updated_at) if held.repo else found.committed_at
        session.add(present)
        _point(session, repo.id, revision, ref, found.commit)

    hub.db.transact(write)
    _log.info("mirrored", repo_id=found.full_name, commit=found.commit, upstream=upstream.host, files=len(files))


def _with_regular_files(hub: Hub, upstream: Upstream, found: RemoteRevision) -> Iterator[Entry]:
    total = sum(entry.size_bytes for entry in found.files if not entry.is_lfs)
    if total > REGULAR_BYTES:
        raise TooLarge(
            f"{found.full_name} of {upstream.host}: {total} bytes in regular files; "
            f"at most {REGULAR_BYTES} are mirrored"
        )
    for entry in found.files:
        if entry.is_lfs:
            yield entry
        else:
            stat = blobs.put(hub, mirror_files.regular(upstream, found.commit, entry))
            yield replace(entry, digest=stat.digest)


def _draft(upstream: Upstream, repo: Repository, found: RemoteRevision, files: dict[str, Entry]) -> revisions.Draft:
    """The commit under the id that it has there, its history left there."""
    built = trees.build(files)
    row = Commit(
        repository_id=repo.id,
        oid=found.commit,
        tree_oid=built.root,
        parents=[],
        author_name=upstream.host,
        author_email="",
        message=f"{found.full_name} as {upstream.host} has it",
        committed_at=found.committed_at,
    )
    return revisions.Draft(row, list(files.values()), built.objects)


def _learn(hub: Hub, upstream: Upstream, repo: Repository, commit: str, files: dict[str, Entry]) -> Learnt:
    """What the files are, from the small ones and the headers of the large; nothing but the reason where that fails."""
    there = {entry.digest: entry for entry in files.values() if entry.is_lfs}
    reading = replace(hub, store=HeadersThere(hub.store, upstream, commit, there))
    try:
        return ingest.examine(reading, ANONYMOUS, repo, commit, {}, files)
    except AdapterHubError as error:
        if isinstance(error, Unavailable) and not isinstance(error, NotFetched):
            raise
        nothing = ingest.examine(hub, ANONYMOUS, repo, commit, {}, {})
        return replace(nothing, whole={**nothing.whole, "reason": str(error)})


def _begin(session: Session, upstream: Upstream, repository_id: str, full_name: str) -> Repository:
    """The repository bound to its source, in an account of the kind of mirrors. Raises RepoNotFound, if taken since."""
    namespace = full_name.partition("/")[0]
    key = name_key(namespace)
    owner = session.exec(select(Account).where(Account.name_key == key)).first()
    if owner is None:
        owner = Account(kind=KIND, name=namespace, name_key=key)
        session.add(owner)
        session.flush()
    if not _is_mirror_of(owner, namespace):
        raise RepoNotFound(full_name)
    repo = repos.place(session, owner, full_name.partition("/")[2], repository_id=repository_id)
    session.add(Mirror(repository_id=repo.id, source_url=upstream.url, source_repo_id=upstream.repo_id))
    audit.record(session, ANONYMOUS, "mirror.bind", repo.id, repo.full_name, detail={"source": upstream.url})
    return repo


def _point(session: Session, repository_id: str, revision: str, ref: str | None, commit: str) -> None:
    """Have the ref stand at that commit, as it does there now."""
    if ref is not None:
        row = session.get(Ref, (repository_id, ref)) or Ref(repository_id=repository_id, name=ref, target_oid=commit)
        row.target_oid = commit
        session.add(row)
    _note(session, repository_id, revision, "")


def _note(session: Session, repository_id: str, revision: str, problem: str) -> None:
    if _FULL.fullmatch(revision):
        return
    row = session.get(MirrorCheck, (repository_id, revision))
    row = row or MirrorCheck(repository_id=repository_id, revision=revision)
    row.checked_at, row.problem = now(), problem
    session.add(row)
