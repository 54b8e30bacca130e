"""A repository in words and numbers: the JSON that REST, the page and the command line all show."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Text, cast, func, select, tuple_
from sqlmodel import Session, col

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Evaluation, Patch, Recipe, Ref, Repository, RevisionFacts
from adapterhub.hub.errors import InvalidCard, PatchNotFound
from adapterhub.hub.services import cards, gates, likes, lineage, recipe_inputs, refs, repos, saved_recipes, trees
from adapterhub.hub.services.access import Caller, readable
from adapterhub.hub.services.names import is_storable
from adapterhub.hub.services.trees import Entry
from adapterhub.merging.errors import MergingError
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.rebuilding import rebuilt
from adapterhub.storage.errors import BlobNotFound

SAVED = 10
"""Most saved recipes that the view of a merge's result names."""

RECIPE_BYTES = 64 << 10
"""Largest recipe.json that a view writes out."""

PATCHES = 100
"""Most patches that one view holds; `patch_list` has the others."""


def repo_view(
    hub: Hub, caller: Caller, repo_id: str, revision: str | None = None, path: str | None = None
) -> dict[str, Any]:
    """Everything known of the repository at a revision, with the first patches in it.

    path: of one folder, whose patch and files are all that is shown then.

    Raises RepoNotFound, RevisionNotFound, PatchNotFound where no patch lies in that folder.
    """
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        commit = refs.resolve(session, repo, revision)
        files = trees.files(session, repo, commit)
        if path:
            files = [file for file in files if file.path.startswith(path + "/")]
        view = _view(session, caller, repo, commit, revision, files, path)
    return view | {"card_text": _card_text(hub, files), "recipe": view["recipe"] or _carried_recipe(hub, files)}


def summaries(
    session: Session, caller: Caller, found: Sequence[tuple[Repository, RevisionFacts]]
) -> list[dict[str, Any]]:
    """One line of the catalogue for each repository, with the facts of the patch nearest to its root."""
    heads = [(facts.repository_id, facts.commit_oid) for _, facts in found]
    key = col(Patch.repository_id), col(Patch.commit_oid)
    grouped = select(*key, func.min(col(Patch.path)), func.count()).where(tuple_(*key).in_(heads)).group_by(*key)
    nearest = {(one, commit, path): count for one, commit, path, count in session.execute(grouped)} if heads else {}
    first = session.scalars(select(Patch).where(tuple_(*key, col(Patch.path)).in_(nearest))).all() if nearest else ()
    patches = {one.repository_id: one for one in first}
    counts = {one: count for (one, _, _), count in nearest.items()}
    bases = _readable_names(session, caller, [patch.base_repository_id for patch in first])
    return [_summary(repo, facts, patches.get(repo.id), counts.get(repo.id, 0), bases) for repo, facts in found]


def _summary(
    repo: Repository, facts: RevisionFacts, patch: Patch | None, count: int, bases: dict[str, str]
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": repo.full_name,
        "private": repo.is_private,
        "kind": facts.kind,
        "commit": facts.commit_oid,
        "updated_at": repo.updated_at.isoformat(),
        "created_at": repo.created_at.isoformat(),
        "downloads": repo.downloads,
        "likes": repo.likes,
        "gated": repo.gated,
        "library": facts.library,
        "pipeline_tag": facts.pipeline_tag,
        "licence": facts.licence,
        "tags": facts.tags,
        "size_bytes": facts.size_bytes,
        "parameter_count": sum(facts.parameters.values()),
        "patch_count": count,
        "base": None,
        "rank_min": None,
        "rank_max": None,
        "problems": [],
    }
    if patch is None:
        return line
    repository = bases.get(patch.base_repository_id or "")
    base = {"name": patch.base_name, "repository": repository} if patch.base_name or repository else None
    return line | {
        "parameter_count": patch.parameter_count,
        "base": base,
        "rank_min": patch.rank_min,
        "rank_max": patch.rank_max,
        "problems": patch.problems,
    }


def _view(
    session: Session,
    caller: Caller,
    repo: Repository,
    commit: str,
    revision: str | None,
    files: list[Entry],
    path: str | None,
) -> dict[str, Any]:
    facts = session.get_one(RevisionFacts, (repo.id, commit))
    at = col(Patch.repository_id) == repo.id, col(Patch.commit_oid) == commit
    where = at if path is None else (*at, col(Patch.path) == (path if is_storable(path) else None))
    patches = session.scalars(select(Patch).where(*where).order_by(col(Patch.path)).limit(PATCHES)).all()
    if path is not None and not patches:
        raise PatchNotFound(repo.full_name, path)
    shown = patches_json(session, caller, patches)
    has_problems = cast(col(Patch.problems), Text) != "[]"
    count, faulty = session.execute(select(func.count(), func.count().filter(has_problems)).where(*at)).one()
    names = [ref.name for ref in refs.list_refs(session, repo)]
    return {
        "id": repo.full_name,
        "private": repo.is_private,
        "owner": repo.full_name.partition("/")[0],
        "revision": revision or repo.default_branch,
        "commit": commit,
        "branch": _branch(session, repo, revision),
        "updated_at": repo.updated_at.isoformat(),
        "created_at": repo.created_at.isoformat(),
        "downloads": repo.downloads,
        "likes": repo.likes,
        "is_liked": likes.is_liked(session, caller, repo),
        "gated": repo.gated,
        "access": gates.state(session, caller, repo),
        "disabled": repo.disabled_at is not None,
        "kind": facts.kind,
        "reason": facts.reason,
        "library": facts.library,
        "pipeline_tag": facts.pipeline_tag,
        "licence": facts.licence,
        "tags": facts.tags,
        "card": facts.card,
        "base": next((patch["base"] for patch in shown if patch["base"]), None),
        "patches": shown,
        "patch_count": count,
        "problem_count": faulty,
        "parameters": facts.parameters,
        "fingerprint": facts.fingerprint,
        "size_bytes": facts.size_bytes,
        "files": [_file_json(file) for file in files],
        "lineage": {
            "parents": lineage.parents(session, caller, repo, commit),
            "children": lineage.children(session, caller, repo),
        },
        "evaluations": _evaluations(session, repo, commit),
        "recipe": _recipe(session, caller, files),
        "branches": [name.removeprefix(refs.BRANCH) for name in names if name.startswith(refs.BRANCH)],
        "tags_refs": [name.removeprefix(refs.TAG) for name in names if name.startswith(refs.TAG)],
    }


def _branch(session: Session, repo: Repository, revision: str | None) -> str | None:
    """The branch that was asked for, None where a tag or commit was."""
    name = (revision or repo.default_branch).removeprefix(refs.BRANCH)
    return name if session.get(Ref, (repo.id, refs.BRANCH + name)) else None


def patches_json(session: Session, caller: Caller, patches: Sequence[Patch]) -> list[dict[str, Any]]:
    """Each patch, its base looked up once for all that have the same."""
    bases: dict[tuple[str | None, ...], dict[str, Any] | None] = {}
    shown = []
    for patch in patches:
        declared = patch.base_name, patch.base_fingerprint, patch.base_quantisation
        key = (patch.base_repository_id, patch.base_commit, *declared)
        if key not in bases:
            bases[key] = _base_json(session, caller, patch)
        shown.append(_patch_json(patch, bases[key]))
    return shown


def _patch_json(patch: Patch, base: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "path": patch.path,
        "kind": patch.kind,
        "reason": patch.reason,
        "effect": patch.effect,
        "digest": patch.digest,
        "base": dict(base) if base is not None else None,
        "rank_min": patch.rank_min,
        "rank_max": patch.rank_max,
        "targets": patch.targets,
        "layers": patch.layers,
        "parameter_count": patch.parameter_count,
        "dtypes": patch.dtypes,
        "size_bytes": patch.size_bytes,
        "training_method": patch.training_method,
        "datasets": patch.datasets,
        "tasks": patch.tasks,
        "languages": patch.languages,
        "detail": patch.detail,
        "contract": patch.contract,
        "training": patch.training,
        "parts": patch.parts,
        "problems": patch.problems,
        "warnings": patch.warnings,
    }


def _base_json(session: Session, caller: Caller, patch: Patch) -> dict[str, Any] | None:
    """The base as far as it is known, and whether the patch still fits what that repository holds now."""
    name = _readable_names(session, caller, [patch.base_repository_id]).get(patch.base_repository_id or "")
    if patch.base_name is None and name is None and patch.base_fingerprint is None:
        return None
    base = session.get(Repository, patch.base_repository_id) if name else None
    pinned = _fingerprint(session, base, patch.base_commit)
    return {
        "name": patch.base_name or name,
        "repository": name,
        "commit": patch.base_commit if base else None,
        "fingerprint": patch.base_fingerprint or pinned,
        "quantisation": patch.base_quantisation,
        "fits": _fits(session, base, patch, pinned) if base else "unknown",
    }


def _fits(session: Session, base: Repository, patch: Patch, pinned: str | None) -> str:
    """exact: the base's head has the tensors the patch was trained on; same_arch: its shapes, with other weights.

    Shapes were checked against the pinned commit when the patch was pushed. unknown: the fingerprint is still being
    computed, or there is none to compare with.
    """
    trained_on = patch.base_fingerprint or pinned
    head = refs.resolve(session, base)
    if patch.base_fingerprint is None and head == patch.base_commit:
        return "exact"
    present = _fingerprint(session, base, head)
    if trained_on is None or present is None:
        return "unknown"
    return "exact" if trained_on == present else "same_arch"


def _fingerprint(session: Session, repo: Repository | None, commit: str | None) -> str | None:
    facts = session.get(RevisionFacts, (repo.id, commit)) if repo and commit else None
    return facts.fingerprint if facts else None


def _readable_names(session: Session, caller: Caller, ids: Sequence[str | None]) -> dict[str, str]:
    """Present names by id, of those repositories that `caller` may see."""
    wanted = {i for i in ids if i}
    if not wanted:
        return {}
    rows = session.execute(
        select(col(Repository.id), col(Repository.full_name)).where(col(Repository.id).in_(wanted), readable(caller))
    )
    return {row.id: row.full_name for row in rows}


def _evaluations(session: Session, repo: Repository, commit: str) -> list[dict[str, Any]]:
    rows = session.scalars(
        select(Evaluation)
        .where(col(Evaluation.repository_id) == repo.id, col(Evaluation.commit_oid) == commit)
        .order_by(col(Evaluation.task), col(Evaluation.dataset), col(Evaluation.metric))
    )
    return [{"task": r.task, "dataset": r.dataset, "metric": r.metric, "value": r.value} for r in rows]


def _recipe(session: Session, caller: Caller, files: Sequence[Entry]) -> dict[str, Any] | None:
    """The recipe of a merge's result: its canonical text is the file, so the file's digest is the recipe's.

    saved: the versions of saved recipes that mean the same, as expressions call them.
    """
    file = next((f for f in files if f.path == recipe_inputs.FILE), None)
    recipe = session.get(Recipe, file.digest) if file else None
    if recipe is None:
        return None
    saved = saved_recipes.of_digest(session, caller, recipe.digest, limit=SAVED)
    return {"digest": recipe.digest, "text": recipe.text, "saved": saved}


def _carried_recipe(hub: Hub, files: Sequence[Entry]) -> dict[str, Any] | None:
    """The recipe of a result that was merged elsewhere, written out of its recipe.json; None where that is none."""
    file = next((f for f in files if f.path == recipe_inputs.FILE and f.size_bytes <= RECIPE_BYTES), None)
    if file is None:
        return None
    try:
        recipe = rebuilt(b"".join(hub.store.read(file.digest, 0, RECIPE_BYTES))).recipe
        return {"digest": file.digest, "text": str(parse(str(recipe))), "saved": []}
    except (MergingError, BlobNotFound):
        return None


def _file_json(file: Entry) -> dict[str, Any]:
    return {"path": file.path, "size": file.size_bytes, "oid": file.oid, "lfs": file.is_lfs, "digest": file.digest}


def _card_text(hub: Hub, files: Sequence[Entry]) -> str:
    """The markdown of the card below its front matter, "" without a card."""
    file = next((f for f in files if f.path == cards.FILE), None)
    if file is None:
        return ""
    content = b"".join(hub.store.read(file.digest, 0, cards.READ_BYTES))
    try:
        return cards.parse(content).text
    except InvalidCard:
        return ""
