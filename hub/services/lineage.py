"""Lineage: what was made from what, pinned to commits, shown only as far as the asker may see."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, select
from sqlmodel import Session, col, delete

from adapterhub.hub.db.tables import LineageEdge, Ref, Repository
from adapterhub.hub.errors import NotFound
from adapterhub.hub.services import refs, repos
from adapterhub.hub.services.access import Caller, readable
from adapterhub.hub.services.recipe_inputs import RecipeInput


@dataclass(frozen=True)
class Parent:
    """Something that a commit was made from. repository_id and what follows: None where it is not on this hub."""

    name: str
    relation: str
    evidence: str
    repository_id: str | None = None
    commit: str | None = None
    digest: str | None = None
    weight: float | None = None


def of_recipe(session: Session, caller: Caller, one: RecipeInput) -> Parent:
    """The parent that a recipe's input is; by name alone where `caller` sees no such repository with that commit."""
    try:
        repo = repos.find(session, caller, one.name)
        commit = refs.resolve(session, repo, one.commit)
    except NotFound:
        return Parent(one.name, "merge", "recipe", weight=one.weight)
    return Parent(repo.full_name, "merge", "recipe", repo.id, commit, one.digest, one.weight)


def record(session: Session, repo: Repository, commit: str, found: Iterable[Parent], digest: str | None) -> None:
    """Let exactly those parents lead to the commit. digest: of the patch that the commit holds, where it holds one."""
    mine = and_(col(LineageEdge.child_repository_id) == repo.id, col(LineageEdge.child_commit) == commit)
    session.execute(delete(LineageEdge).where(mine))
    for parent in found:
        add(session, repo, commit, parent, digest)


def add(session: Session, repo: Repository, commit: str, parent: Parent, digest: str | None = None) -> None:
    """Let `parent` lead to the commit, besides what does already."""
    edge = LineageEdge(
        child_repository_id=repo.id,
        child_commit=commit,
        child_digest=digest,
        parent_repository_id=parent.repository_id,
        parent_name=parent.name,
        parent_commit=parent.commit,
        parent_digest=parent.digest,
        relation=parent.relation,
        evidence=parent.evidence,
        weight=parent.weight,
    )
    session.add(edge)


def parents(session: Session, caller: Caller, repo: Repository, commit: str) -> list[dict[str, Any]]:
    """What that commit was made from. A parent that `caller` may not see stands there as it was declared."""
    edges = session.execute(
        select(LineageEdge, Repository)
        .join(Repository, _is_parent_readable(caller), isouter=True)
        .where(col(LineageEdge.child_repository_id) == repo.id, col(LineageEdge.child_commit) == commit)
        .order_by(col(LineageEdge.parent_name))
    )
    return [
        _edge_json(edge, edge.parent_name, parent, edge.parent_commit if parent else None) for edge, parent in edges
    ]


def children(session: Session, caller: Caller, repo: Repository) -> list[dict[str, Any]]:
    """What was made from the repository: children that `caller` may see, at commits that a branch or tag is on."""
    edges = session.execute(
        _to_children(caller, repo, LineageEdge, Repository).order_by(
            col(Repository.full_name), col(LineageEdge.created_at).desc()
        )
    )
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for edge, child in edges:
        found.setdefault((child.id, edge.relation), _edge_json(edge, child.full_name, child, edge.child_commit))
    return list(found.values())


def count_children(session: Session, caller: Caller, repo: Repository) -> int:
    """The number of repositories among `children`."""
    return session.scalar(_to_children(caller, repo, func.count(col(Repository.id).distinct()))) or 0


def _to_children(caller: Caller, repo: Repository, *what: Any) -> Select[Any]:
    at_ref = and_(col(Ref.repository_id) == col(Repository.id), col(Ref.target_oid) == col(LineageEdge.child_commit))
    statement: Select[Any] = (
        select(*what)
        .select_from(LineageEdge)
        .join(Repository, col(Repository.id) == col(LineageEdge.child_repository_id))
        .join(Ref, at_ref)
    )
    return statement.where(col(LineageEdge.parent_repository_id) == repo.id, readable(caller))


def _is_parent_readable(caller: Caller) -> ColumnElement[bool]:
    return and_(col(Repository.id) == col(LineageEdge.parent_repository_id), readable(caller))


def _edge_json(edge: LineageEdge, name: str, other: Repository | None, commit: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "repository": other.full_name if other else None,
        "commit": commit,
        "relation": edge.relation,
        "evidence": edge.evidence,
        "weight": edge.weight,
    }
