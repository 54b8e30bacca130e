"""Which revision on this hub a patch was trained on: by the fingerprint it carries, else by the name it declares."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import Session, col

from adapterhub.hub.db.tables import Repository, RevisionFacts
from adapterhub.hub.errors import NotFound
from adapterhub.hub.services import refs, repos
from adapterhub.hub.services.access import Caller, readable
from adapterhub.merging.patch import TrainingBase


@dataclass(frozen=True)
class BaseRevision:
    """A full model on this hub. evidence: fingerprint or declared. fingerprint: None until its job has run."""

    repo: Repository
    commit: str
    evidence: str
    fingerprint: str | None


def locate(session: Session, caller: Caller, base: TrainingBase, declared: Sequence[str]) -> BaseRevision | None:
    """The base among the repositories that `caller` may read; None where it is not here.

    declared: names that the card gives, tried after the one in the patch's own files.
    """
    if base.fingerprint:
        same = (
            select(Repository, col(RevisionFacts.commit_oid))
            .join(RevisionFacts, col(RevisionFacts.repository_id) == col(Repository.id))
            .where(col(RevisionFacts.fingerprint) == base.fingerprint, readable(caller))
            .order_by(col(Repository.created_at))
        )
        names = {base.name, *declared}
        rows = session.execute(same).all()
        # of several with the same tensors, the one that the patch names
        for repo, commit in sorted(rows, key=lambda row: row[0].full_name not in names):
            return BaseRevision(repo, commit, "fingerprint", base.fingerprint)
    for name in (base.name, *declared):
        found = named(session, caller, name, base.revision if name == base.name else None) if name else None
        if found:
            return found
    return None


def named(session: Session, caller: Caller, name: str, revision: str | None = None) -> BaseRevision | None:
    """The full model of that name, at its default branch where it has no such revision; None where it is not here."""
    try:
        repo = repos.find(session, caller, name)
    except NotFound:
        return None
    try:
        commit = refs.resolve(session, repo, revision)
    except NotFound:
        commit = refs.resolve(session, repo)
    facts = session.get(RevisionFacts, (repo.id, commit))
    if facts is None or facts.kind != "model":
        return None
    return BaseRevision(repo, commit, "declared", facts.fingerprint)
