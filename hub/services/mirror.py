"""Repositories of another hub, brought here when somebody first reads them, and kept for when that hub is gone.

A mirror is bound for ever to where it came from, and is read-only here. Its commits keep the ids that they have there,
by which clients cache; trees and blobs are our own rows of git's own ids.
"""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import BoundedSemaphore

import structlog
from sqlalchemy import delete
from sqlmodel import Session, col, select

from adapterhub.errors import AdapterHubError
from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import (
    Account,
    Blob,
    Commit,
    Membership,
    Mirror,
    MirrorAccess,
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
    Overloaded,
    Refused,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
    Unavailable,
)
from adapterhub.hub.services import (
    accounts,
    audit,
    blobs,
    flights,
    ingest,
    mirror_files,
    mirror_missing,
    mirror_tokens,
    refs,
    repos,
    revisions,
    trees,
)
from adapterhub.hub.services.access import ANONYMOUS, Caller, may_know
from adapterhub.hub.services.ingest import Learnt
from adapterhub.hub.services.mirror_missing import RETRY_S
from adapterhub.hub.services.mirror_reading import HeadersThere
from adapterhub.hub.services.names import check_ref_name, check_repo_id, is_storable, name_key
from adapterhub.hub.services.trees import Entry
from adapterhub.hub.services.upstream import ANSWER_S, RemoteRevision, Upstream
from adapterhub.merging.errors import Cancelled
from adapterhub.storage.blobs import BlobStat

REGULAR_BYTES = 64 << 20
"""Most bytes of regular files of one revision; they come with the list of files."""

REGULAR_AT_ONCE = 4
"""Regular files of a revision that are fetched at once."""

LOOKS_AT_ONCE = 8
"""Repositories that are looked up there at once."""

WAIT_S = 20.0
"""How long a thread waits to be one of them."""

_FULL = re.compile(r"[0-9a-f]{40}")
_looks = BoundedSemaphore(LOOKS_AT_ONCE)
_log = structlog.get_logger("adapterhub.mirror")


@dataclass(frozen=True)
class _Held:
    """What is here of a repository, for one caller. repo: None where nothing is; check: the last look at the revision.

    is_hidden: the other hub showed it to others alone, so that it is no more to this caller than what is not here.
    needs_proof: it was shown to an organisation of the caller's, longer ago than `mirror_ttl_s`.
    """

    repo: Repository | None = None
    source: Mirror | None = None
    check: MirrorCheck | None = None
    commit: str | None = None
    is_hidden: bool = False
    needs_proof: bool = False

    @property
    def problem(self) -> str | None:
        """Why this may be an old state of the revision; None where nothing says so."""
        return self.check.problem or None if self.check and not self.is_hidden else None

    @property
    def is_bound(self) -> bool:
        """Whether it is shown to organisations alone, and to one of the caller's."""
        return self.source is not None and self.source.organisation_id is not None and not self.is_hidden


def ensure(hub: Hub, caller: Caller, repo_id: str, revision: str | None) -> str | None:
    """Have that revision of a repository here, if another hub is told of and has it; a warning where it is an old one.

    revision: None for the default branch; a commit's full id is asked for once, all else again after `mirror_ttl_s`.
    Nothing happens for repositories of this hub, names that they had, and namespaces of its accounts; nor for callers
    without a token, unless `mirror_anonymous`. The other hub is asked without a token first, and then with those of the
    caller's organisations. Raises as `Upstream.revision`, unless what is here already serves; Overloaded, SealBroken.
    """
    revision = "main" if revision in (None, "HEAD") else str(revision)
    if hub.settings.mirror_url is None or not _is_name(repo_id, revision):
        return None
    held = _held(hub, caller, repo_id, revision)
    if held is None or _serves(hub, revision, held) or (caller.is_anonymous and not hub.settings.mirror_anonymous):
        return held.problem if held else None
    with _a_look(hub, repo_id):
        held = _held(hub, caller, repo_id, revision)
        if held is None or _serves(hub, revision, held):
            return held.problem if held else None
        return _look(hub, caller, repo_id, revision, held)


@contextmanager
def _a_look(hub: Hub, repo_id: str) -> Iterator[None]:
    """One of the few looks that are made at once, and the only one at that name.

    Raises Overloaded when that is not granted in WAIT_S.
    """
    until = time.monotonic() + WAIT_S
    busy = Overloaded(f"{repo_id}: {hub.settings.mirror_url} is asked about it, or about many others; try again")
    try:
        with flights.turn(
            hub.settings.data, "repository", repo_id.casefold(), cancelled=lambda: time.monotonic() > until
        ):
            if not _looks.acquire(timeout=max(0.0, until - time.monotonic())):
                raise busy
            try:
                yield
            finally:
                _looks.release()
    except Cancelled:
        raise busy from None


def require_own_history(session: Session, repo: Repository) -> None:
    """Pass when the repository's commits are whole git objects. Raises Forbidden for a mirror.

    Its commits have the ids of objects that are at the other hub alone, so git would refuse them.
    """
    source = session.get(Mirror, repo.id)
    if source is not None:
        raise Forbidden(f"{repo.full_name}: a mirror, whose history is not here; clone it from {source.source_url}")


def _look(hub: Hub, caller: Caller, repo_id: str, revision: str, held: _Held) -> str | None:
    """Ask the other hub, and record what it has; the warning that stands when it has not and something is here."""
    refusals: list[HubError] = []
    for upstream in _as_whom(hub, caller, repo_id, held):
        try:
            with mirror_missing.remembered(hub, upstream, revision):
                _record(hub, upstream, revision, upstream.revision(revision), held)
        except (RepoNotFound, Refused) as error:
            _withdraw(hub, upstream, held)
            refusals.append(error)
        except HubError as error:
            if isinstance(error, RevisionNotFound) and held.is_bound:
                _prove_again(hub, upstream, held)
            return _stale(hub, upstream, repo_id, revision, held, error)
        else:
            return None
    worst = next((one for one in reversed(refusals) if not isinstance(one, RepoNotFound)), refusals[-1])
    if held.is_bound:
        raise worst
    return _stale(hub, _as_everybody(hub, repo_id, held), repo_id, revision, held, worst)


def _as_everybody(hub: Hub, repo_id: str, held: _Held) -> Upstream:
    """The repository as who has no token there is shown it."""
    url = held.source.source_url if held.source else str(hub.settings.mirror_url).rstrip("/")
    is_here = held.source is not None and not held.is_hidden
    return Upstream(hub.settings, url, held.source.source_repo_id if held.source and is_here else repo_id)


def _as_whom(hub: Hub, caller: Caller, repo_id: str, held: _Held) -> list[Upstream]:
    """As whom to ask, one after another until one is not refused.

    What everybody was shown once needs no token; what organisations alone are shown is asked for with theirs.
    """
    everybody = _as_everybody(hub, repo_id, held)
    if held.source is not None and held.source.organisation_id is None:
        return [everybody]
    with hub.db.read() as session:
        if caller.is_admin and held.repo is not None and held.is_bound:
            mine = mirror_tokens.of_repository(session, hub, held.repo.id, everybody.url, everybody.repo_id)
        else:
            mine = mirror_tokens.of_caller(session, hub, caller, everybody.url, everybody.repo_id)
    return mine if mine and held.is_bound else [everybody, *mine]


def _stale(hub: Hub, upstream: Upstream, repo_id: str, revision: str, held: _Held, error: HubError) -> str:
    """The warning that stands where what is here serves although the other hub does not. Raises `error` elsewhere."""
    if held.repo is None or held.commit is None or held.is_hidden:
        raise error
    problem = f"mirror; {upstream.host} did not answer well for {repo_id}; this is what it had before"
    _log.warning("mirror_stale", repo_id=repo_id, revision=revision, upstream=upstream.host, reason=str(error))
    repository_id = held.repo.id
    hub.db.transact(lambda session: _note(session, repository_id, revision, problem))
    return problem


def _held(hub: Hub, caller: Caller, repo_id: str, revision: str) -> _Held | None:
    """What is here of the repository for that caller; None where the name is not another hub's to fill."""
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
        if not may_know(session, caller, repo):
            return _Held(repo, source, is_hidden=True)
        try:
            commit = refs.resolve(session, repo, revision)
        except RevisionNotFound:
            commit = None
        needs_proof = source.organisation_id is not None and not _is_proven(session, hub, caller, repo)
        return _Held(repo, source, session.get(MirrorCheck, (repo.id, revision)), commit, needs_proof=needs_proof)


def _is_proven(session: Session, hub: Hub, caller: Caller, repo: Repository) -> bool:
    """Whether one of the caller's organisations was shown the repository within `mirror_ttl_s`; for admins, any."""
    lately = col(MirrorAccess.proven_at) > now() - timedelta(seconds=hub.settings.mirror_ttl_s)
    shown = select(MirrorAccess.organisation_id).where(MirrorAccess.repository_id == repo.id, lately)
    if not caller.is_admin:
        mine = col(Membership.organisation_id) == col(MirrorAccess.organisation_id)
        shown = shown.join(Membership, mine).where(Membership.user_id == caller.account_id)
    return session.exec(shown).first() is not None


def _is_mirror_of(owner: Account, namespace: str) -> bool:
    return owner.kind == accounts.MIRROR and owner.name.casefold() == namespace.casefold()


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
    if held.commit is None or held.needs_proof:
        return held.commit is not None and _failed_lately(held.check)
    return bool(_FULL.fullmatch(revision)) or _is_fresh(hub, held.check)


def _failed_lately(check: MirrorCheck | None) -> bool:
    return check is not None and bool(check.problem) and now() - check.checked_at < timedelta(seconds=RETRY_S)


def _is_fresh(hub: Hub, check: MirrorCheck | None) -> bool:
    if check is None:
        return False
    return now() - check.checked_at < timedelta(seconds=RETRY_S if check.problem else hub.settings.mirror_ttl_s)


def _record(hub: Hub, upstream: Upstream, revision: str, found: RemoteRevision, held: _Held) -> None:
    """Bring the regular files here, and write the repository, commit, trees, facts and ref in one transaction.

    Who asked is shown it from then on: with a token, its organisation; without one, everybody.
    """
    ref = None if _FULL.fullmatch(revision) else upstream.ref_name(revision, found.commit)
    repo = held.repo or Repository(owner_id="", full_name=found.full_name, name_key=None)
    with hub.db.read() as session:
        is_known = held.repo is not None and session.get(Commit, (repo.id, found.commit)) is not None
    if held.is_hidden and not is_known:
        _require_same(hub, upstream, repo)
    if is_known:
        if held.is_hidden or held.is_bound:
            _require_files(upstream, found)

        def look(session: Session) -> None:
            _show(session, hub, upstream, repo.id)
            _point(session, repo.id, revision, ref, found.commit)

        hub.db.transact(look)
        return
    if any(entry.is_lfs for entry in found.files):
        _require_files(upstream, found)
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
        _show(session, hub, upstream, repo.id)
        _point(session, repo.id, revision, ref, found.commit)

    hub.db.transact(write)
    _log.info("mirrored", repo_id=found.full_name, commit=found.commit, upstream=upstream.host, files=len(files))


def _require_files(upstream: Upstream, found: RemoteRevision) -> None:
    """Pass when who asked may read files too, and not only about them. Raises as `Upstream.open`.

    The largest is tried: hubs show the cards of what they gate.
    """
    largest = max(found.files, key=lambda entry: entry.size_bytes, default=None)
    if largest is not None:
        with upstream.open(found.commit, largest.path, 0, min(1, largest.size_bytes), deadline_s=ANSWER_S) as pieces:
            next(pieces, None)


def _require_same(hub: Hub, upstream: Upstream, repo: Repository) -> None:
    """Pass when who asked is shown a commit there that is here. Raises RepoNotFound elsewhere, and as `Upstream`.

    What is here was shown to others: under a name that was given away since, it is not to be shown to who has it now.
    """
    newest = select(Commit.oid).where(Commit.repository_id == repo.id).order_by(col(Commit.committed_at).desc())
    with hub.db.read() as session:
        commit = session.exec(newest.limit(1)).one()
    try:
        upstream.revision(commit)
    except RevisionNotFound:
        raise upstream.missing() from None


def _show(session: Session, hub: Hub, upstream: Upstream, repository_id: str) -> None:
    """Have everybody see the mirror, or the organisation that was shown it, if it keeps that token still."""
    source = session.get_one(Mirror, repository_id)
    repo = session.get_one(Repository, repository_id)
    if source.organisation_id is None:
        return
    if upstream.organisation_id is not None:
        if not mirror_tokens.is_kept(session, hub, upstream):
            return
        key = repository_id, upstream.organisation_id
        row = session.get(MirrorAccess, key) or MirrorAccess(repository_id=key[0], organisation_id=key[1])
        row.proven_at = now()
        session.add(row)
        return
    source.organisation_id, repo.is_private = None, False
    session.execute(delete(MirrorAccess).where(col(MirrorAccess.repository_id) == repository_id))
    session.add_all((source, repo))
    audit.record(session, ANONYMOUS, "mirror.publish", repo.id, repo.full_name, detail={"source": source.source_url})


def _prove_again(hub: Hub, upstream: Upstream, held: _Held) -> None:
    """Note that the other hub showed the repository just now, although not that revision."""
    assert held.repo is not None
    repository_id = held.repo.id
    hub.db.transact(lambda session: _show(session, hub, upstream, repository_id))


def _withdraw(hub: Hub, upstream: Upstream, held: _Held) -> None:
    """Show the mirror no more to an organisation that is refused it there."""
    if held.repo is None or upstream.organisation_id is None:
        return
    key, full_name = (held.repo.id, upstream.organisation_id), held.repo.full_name

    def work(session: Session) -> None:
        row = session.get(MirrorAccess, key)
        if row is not None:
            session.delete(row)
            audit.record(session, ANONYMOUS, "mirror.withdraw", key[0], full_name, detail={"organisation_id": key[1]})

    hub.db.transact(work)


def _with_regular_files(hub: Hub, upstream: Upstream, found: RemoteRevision) -> Iterator[Entry]:
    total = sum(entry.size_bytes for entry in found.files if not entry.is_lfs)
    if total > REGULAR_BYTES:
        raise TooLarge(
            f"{found.full_name} of {upstream.host}: {total} bytes in regular files; "
            f"at most {REGULAR_BYTES} are mirrored"
        )

    def stored(entry: Entry) -> Entry:
        return replace(entry, digest=blobs.put(hub, mirror_files.regular(upstream, found.commit, entry)).digest)

    yield from (entry for entry in found.files if entry.is_lfs)
    with ThreadPoolExecutor(REGULAR_AT_ONCE, thread_name_prefix="mirror") as pool:
        waiting = [pool.submit(stored, entry) for entry in found.files if not entry.is_lfs]
        try:
            yield from (one.result() for one in waiting)
        finally:
            for one in waiting:
                one.cancel()


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
        return ingest.examine(reading, ANONYMOUS, repo, commit, {}, files, reads_values=False)
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
        owner = Account(kind=accounts.MIRROR, name=namespace, name_key=key)
        session.add(owner)
        session.flush()
    if not _is_mirror_of(owner, namespace):
        raise RepoNotFound(full_name)
    private, name = upstream.organisation_id is not None, full_name.partition("/")[2]
    repo = repos.place(session, owner, name, private=private, repository_id=repository_id)
    source = Mirror(repository_id=repo.id, source_url=upstream.url, source_repo_id=upstream.repo_id)
    source.organisation_id = upstream.organisation_id
    session.add(source)
    session.flush()
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
