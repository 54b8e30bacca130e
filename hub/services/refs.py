"""Branches, tags and what a revision means. A ref moves only by compare-and-set."""

import re

from sqlalchemy import update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from adapterhub.hub.db.tables import Commit, Ref, Repository, now
from adapterhub.hub.errors import Conflict, InvalidRequest, RefExists, RevisionNotFound
from adapterhub.hub.services import audit
from adapterhub.hub.services.access import Caller, require_write
from adapterhub.hub.services.names import check_ref_name, is_storable

BRANCH = "refs/heads/"
TAG = "refs/tags/"
PULL_REQUEST = "refs/pr/"

_FULL = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-f]{7,39}")


def resolve(session: Session, repo: Repository, revision: str | None = None) -> str:
    """The 40-hex commit that `revision` names: branch, tag, "refs/…", commit id or at least 7 hex of one.

    None and "HEAD" mean the default branch. Raises RevisionNotFound, also for an ambiguous prefix.
    """
    if revision is None or revision == "HEAD":
        revision = repo.default_branch
    if _FULL.fullmatch(revision):
        if session.get(Commit, (repo.id, revision)):
            return revision
        raise RevisionNotFound(repo.full_name, revision)
    if not is_storable(revision):
        raise RevisionNotFound(repo.full_name, revision)
    names = (revision,) if revision.startswith("refs/") else (BRANCH + revision, TAG + revision)
    for name in names:
        ref = session.get(Ref, (repo.id, name))
        if ref is not None:
            return ref.target_oid
    if _SHORT.fullmatch(revision):
        oids = session.exec(_with_prefix(repo, revision)).all()
        if len(oids) == 1:
            return oids[0]
    raise RevisionNotFound(repo.full_name, revision)


def branch_head(session: Session, repo: Repository, branch: str) -> str:
    """The commit at the tip of `branch`. Raises RevisionNotFound, also for a tag or commit of that name."""
    return head(session, repo, BRANCH + branch.removeprefix(BRANCH))


def head(session: Session, repo: Repository, name: str) -> str:
    """The commit that the ref of that full name stands at. Raises RevisionNotFound."""
    ref = session.get(Ref, (repo.id, name)) if is_storable(name) else None
    if ref is None:
        raise RevisionNotFound(repo.full_name, name.removeprefix(BRANCH))
    return ref.target_oid


def list_refs(session: Session, repo: Repository) -> list[Ref]:
    """Every ref of the repository, by name; the caller asked `access` before."""
    return list(session.exec(select(Ref).where(Ref.repository_id == repo.id).order_by(col(Ref.name))))


def create_branch(
    session: Session, caller: Caller, repo: Repository, branch: str, starting_point: str | None = None
) -> str:
    """The commit of a fresh branch. Raises Forbidden, InvalidName, RevisionNotFound, RefExists."""
    require_write(session, caller, repo)
    target = resolve(session, repo, starting_point)
    _create(session, caller, repo, BRANCH + check_ref_name(branch), target)
    return target


def create_tag(session: Session, caller: Caller, repo: Repository, tag: str, revision: str | None, message: str) -> str:
    """The commit of a fresh tag. Raises Forbidden, InvalidName, RevisionNotFound, RefExists."""
    require_write(session, caller, repo)
    target = resolve(session, repo, revision)
    _create(session, caller, repo, TAG + check_ref_name(tag), target, message)
    return target


def delete_branch(session: Session, caller: Caller, repo: Repository, branch: str) -> None:
    """Remove a branch; its commits stay. Raises Forbidden, RevisionNotFound, and Conflict for the default branch."""
    if branch == repo.default_branch:
        raise Conflict(f"{repo.full_name}: {branch} is the default branch and stays")
    _delete(session, caller, repo, BRANCH + branch)


def delete_tag(session: Session, caller: Caller, repo: Repository, tag: str) -> None:
    """Remove a tag. Raises Forbidden, RevisionNotFound."""
    _delete(session, caller, repo, TAG + tag)


def move_ref(session: Session, repo: Repository, name: str, expected: str, target: str) -> bool:
    """Whether the ref stood at `expected` and stands at `target` now. name: in full."""
    moved = session.execute(
        update(Ref)
        .where(col(Ref.repository_id) == repo.id, col(Ref.name) == name, col(Ref.target_oid) == expected)
        .values(target_oid=target, updated_at=now())
    )
    return bool(moved.rowcount == 1)  # type: ignore[attr-defined]


def _create(session: Session, caller: Caller, repo: Repository, name: str, target: str, message: str = "") -> None:
    if not is_storable(message):
        raise InvalidRequest("the tag's message holds a NUL or half a character; write it anew")
    if session.get(Ref, (repo.id, name)):
        raise RefExists(f"{repo.full_name}: {name} exists already")
    session.add(Ref(repository_id=repo.id, name=name, target_oid=target, message=message))
    audit.record(session, caller, "ref.create", repo.id, repo.full_name, after=target, detail={"ref": name})


def _delete(session: Session, caller: Caller, repo: Repository, name: str) -> None:
    require_write(session, caller, repo)
    ref = session.get(Ref, (repo.id, name)) if is_storable(name) else None
    if ref is None:
        raise RevisionNotFound(repo.full_name, name)
    session.delete(ref)
    audit.record(session, caller, "ref.delete", repo.id, repo.full_name, before=ref.target_oid, detail={"ref": name})


def _with_prefix(repo: Repository, prefix: str) -> SelectOfScalar[str]:
    return select(Commit.oid).where(Commit.repository_id == repo.id, col(Commit.oid).startswith(prefix)).limit(2)
