"""Content that one repository takes over from another, without its bytes moving.

The right to bytes is (repository, digest): who may read the source's files and write to the target may let the target
have them too. Only what a commit of the source holds can be taken over: bytes that were merely uploaded are its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import insert, literal, select
from sqlmodel import Session, SQLModel, col

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import chunks, insert_missing
from adapterhub.hub.db.tables import (
    BlobOwner,
    Commit,
    Evaluation,
    GitBlob,
    GitTreeEntry,
    LineageEdge,
    Patch,
    Ref,
    Repository,
    RevisionFacts,
    new_id,
    now,
)
from adapterhub.hub.errors import EntryNotFound
from adapterhub.hub.services import audit, blobs, cards, ingest, lineage, mirror, refs, repos, search_index, trees
from adapterhub.hub.services.access import Caller, require_content, require_signed_in, require_write
from adapterhub.hub.services.lineage import Parent
from adapterhub.storage.blobs import BlobStat

_SAME_ROWS: tuple[type[SQLModel], ...] = (GitBlob, GitTreeEntry, Commit, RevisionFacts)
"""Tables whose rows are keyed by repository and content: the copy's differ in nothing but the repository."""

_OWN_ROWS: tuple[tuple[type[SQLModel], str], ...] = (
    (Patch, "repository_id"),
    (Evaluation, "repository_id"),
    (LineageEdge, "child_repository_id"),
)
"""Tables whose rows have an id of their own, with the column that names the repository."""


def share(
    session: Session, caller: Caller, source: Repository, target: Repository, digests: Iterable[str]
) -> dict[str, str]:
    """Let `target` have those files of `source`; gives the reason for each that it cannot have, by digest.

    Raises RepoNotFound, GatedRepo, NotAuthenticated, Forbidden.
    """
    require_content(session, caller, source)
    require_write(session, caller, target)
    wanted = dict.fromkeys(digests)
    found: dict[str, BlobStat] = {}
    for some in chunks(wanted):
        rows = session.scalars(
            select(GitBlob)
            .join(
                BlobOwner,
                (col(BlobOwner.repository_id) == col(GitBlob.repository_id))
                & (col(BlobOwner.digest) == col(GitBlob.digest)),
            )
            .where(col(GitBlob.repository_id) == source.id, col(GitBlob.digest).in_(some))
            .with_for_update(read=True, of=BlobOwner)
        )
        found |= {row.digest: BlobStat(row.digest, row.size_bytes, 0.0) for row in rows}
    blobs.record(session, target.id, found.values())
    reason = f"no commit of {source.full_name} holds such a file, or it is a mirror and was not asked for it yet"
    return {digest: reason for digest in wanted if digest not in found}


def duplicate(hub: Hub, caller: Caller, source_id: str, target_id: str, *, private: bool | None = None) -> Repository:
    """A fresh repository with every commit, branch and tag of the source, under the same ids.

    private: None for as private as the source; the gate is the source's. Raises as `repos.create`, RepoNotFound and
    GatedRepo.
    """
    require_signed_in(caller)

    def write(session: Session) -> Repository:
        source = repos.find(session, caller, source_id)
        require_content(session, caller, source)
        mirror.require_own_history(session, source)
        # every commit writes its repository's row: holding it, all tables are read as of one moment
        session.refresh(source, with_for_update=True)
        target = repos.begin(session, caller, target_id, private=source.is_private if private is None else private)
        target.gated, target.default_branch = source.gated, source.default_branch
        session.add(target)
        _copy_rows(session, source, target)
        _describe(session, hub, source, target)
        audit.record(
            session, caller, "repo.duplicate", target.id, target.full_name, detail={"source": source.full_name}
        )
        return target

    return hub.db.transact(write)


def _copy_rows(session: Session, source: Repository, target: Repository) -> None:
    digests = select(col(GitBlob.digest)).where(col(GitBlob.repository_id) == source.id).distinct()
    right = select(literal(target.id), digests.subquery().c.digest, literal(now()))
    session.execute(insert(BlobOwner).from_select(["repository_id", "digest", "linked_at"], right))
    for table in _SAME_ROWS:
        columns = table.__table__.columns  # type: ignore[attr-defined]
        others = [column for column in columns if column.name != "repository_id"]
        same = select(literal(target.id), *others).where(columns.repository_id == source.id)
        session.execute(insert(table).from_select(["repository_id", *(column.name for column in others)], same))
    for table, owner in _OWN_ROWS:
        here = table.__table__.columns[owner] == source.id  # type: ignore[attr-defined]
        own = session.scalars(select(table).where(here)).all()
        insert_missing(session, table, [row.model_dump() | {"id": new_id(), owner: target.id} for row in own])
    for ref in refs.list_refs(session, source):
        if ref.name.startswith((refs.BRANCH, refs.TAG)):
            session.add(Ref(**(ref.model_dump() | {"repository_id": target.id})))
    session.flush()


def _describe(session: Session, hub: Hub, source: Repository, target: Repository) -> None:
    """Let the copy be found, say what it is a copy of where all may know that, and queue the looks it still needs."""
    head = refs.branch_head(session, target, target.default_branch)
    facts = session.get(RevisionFacts, (target.id, head))
    here = col(Patch.repository_id) == target.id, col(Patch.commit_oid) == head
    folders = session.scalars(select(col(Patch.path)).where(*here)).all()
    search_index.index(session, target, facts.tags if facts else (), _card_text(session, hub, target, head), folders)
    if not source.is_private:
        parent = Parent(source.full_name, "copy", "declared", source.id, head)
        lineage.add(session, target, head, parent)
    if facts and facts.kind == "model" and facts.fingerprint is None:
        payload: Mapping[str, Any] = {"repository_id": target.id, "commit": head}
        hub.jobs.submit_in(session, ingest.FINGERPRINT_JOB, payload, key=f"{target.id}@{head}")


def _card_text(session: Session, hub: Hub, repo: Repository, head: str) -> str:
    try:
        card = trees.entry(session, repo, head, cards.FILE)
    except EntryNotFound:
        return ""
    return cards.parse(b"".join(blobs.open_file(hub, card, 0, cards.READ_BYTES))).text if card.size_bytes else ""
