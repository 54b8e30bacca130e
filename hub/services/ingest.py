"""What a commit holds, learnt from its headers and configurations, inside the commit call.

`examine` runs before the branch moves and may refuse; `record` writes what it learnt in the commit's own transaction.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from sqlmodel import Session, col, delete, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.queries import insert_missing
from adapterhub.hub.db.tables import Evaluation, Patch, Repository, RevisionFacts
from adapterhub.hub.errors import NotFound, Refused, TooLarge, Unavailable
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.services import (
    bases,
    cards,
    fitness,
    lineage,
    mirror_reading,
    recipe_inputs,
    search_index,
    tags,
    trees,
)
from adapterhub.hub.services.access import Caller, readable
from adapterhub.hub.services.bases import BaseRevision
from adapterhub.hub.services.cards import Card
from adapterhub.hub.services.fitness import Judge
from adapterhub.hub.services.folders import RepositoryFolder
from adapterhub.hub.services.lineage import Parent
from adapterhub.hub.services.names import is_storable
from adapterhub.hub.services.recipe_inputs import RecipeInput
from adapterhub.hub.services.revisions import Draft
from adapterhub.hub.services.trees import Entry
from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, Folder, read_header
from adapterhub.merging.errors import InvalidPatch, MergingError, NotFoldable, ShapeMismatch, UnknownSite
from adapterhub.merging.folders import read_json
from adapterhub.merging.patch import Facts, TrainingBase
from adapterhub.merging.quantised import dequantised
from adapterhub.storage.errors import BlobNotFound

FINGERPRINT_JOB = "fingerprint"
EVALUATIONS = 1000
"""Most numbers taken from one card."""


@dataclass(frozen=True)
class Seen:
    """One patch with its base on this hub, where it has one there. digest: None for what cannot be read as a patch."""

    facts: Facts
    base: BaseRevision | None
    digest: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Learnt:
    """What is known of one set of files. whole: fields of `RevisionFacts` besides its key."""

    whole: Mapping[str, Any]
    card: Card
    patches: tuple[Seen, ...]
    parents: tuple[Parent, ...]
    fingerprint: str | None
    """Of a full model whose weights are its parent's; None until the job has run."""


def examine(
    hub: Hub,
    caller: Caller,
    repo: Repository,
    head: str,
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
    *,
    reads_values: bool = True,
) -> Learnt:
    """What the files `after` a commit are. head, before: the commit it is laid onto, and the files there.

    reads_values: whether the numbers of patches are searched for NaN and infinity; False where the bytes are not here.
    Raises InvalidCard; BrokenContainer for a changed safetensors file that is no sound one; UnfitPatch for a patch with
    NaN or infinity, or that does not fit its base, when that is on this hub, unless the owner wants those flagged. A
    patch that is merely incomplete is kept with its problems, since clients push a patch file by file.
    """
    folder = RepositoryFolder(hub.store, after.values())
    changed = {path for path in folder.names() if before.get(path) != after[path]}
    for path in sorted(changed):
        if path.endswith(".safetensors"):
            _check_container(folder, path)
    card = cards.parse(folder.read(cards.FILE, 0, cards.READ_BYTES)) if cards.FILE in after else Card()
    known = _known(hub, caller, repo, head, _unchanged(before, after))
    new = [_with_storable_base(one) for one in patches.inspect(folder, leave_out={one.facts.path for one in known})]
    opened = _Bases(hub)
    judge = fitness.judge(hub, repo, head, changed, reads_values=reads_values)
    looked = [_look(hub, caller, folder, one, card.texts("base_model"), opened, judge) for one in new]
    seen = tuple(sorted([*known, *looked], key=lambda one: one.facts.path))
    whole = _whole(folder, card, [one.facts for one in seen])
    made_of = recipe_inputs.of(_json(folder, recipe_inputs.FILE))
    parents = _parents(hub, caller, made_of, seen, whole["base_models"])
    fingerprint = _known_fingerprint(hub, repo, head) if _weights(before) == _weights(after) else None
    return Learnt(whole, card, seen, tuple(parents), fingerprint)


def record(
    session: Session,
    jobs: JobQueue,
    repo: Repository,
    branch: str,
    draft: Draft,
    learnt: Learnt,
    *,
    looks_at_tensors: bool = True,
) -> None:
    """Write what was learnt of the commit, in its transaction, and queue the looks that read whole tensors.

    looks_at_tensors: False where the bytes are not here.
    """
    commit = draft.row.oid
    row = RevisionFacts(repository_id=repo.id, commit_oid=commit, fingerprint=learnt.fingerprint, **learnt.whole)
    insert_missing(session, RevisionFacts, [row.model_dump()])
    insert_missing(session, Patch, [_patch_row(repo, commit, learnt, one).model_dump() for one in learnt.patches])
    root = next((one for one in learnt.patches if one.facts.path == ""), None)
    lineage.record(session, repo, commit, learnt.parents, root.digest if root else None)
    mine = col(Evaluation.repository_id) == repo.id, col(Evaluation.commit_oid) == commit
    session.execute(delete(Evaluation).where(*mine, col(Evaluation.source) == "card"))
    session.add_all(_evaluations(repo, commit, learnt.card))
    if branch == repo.default_branch:
        folders = (one.facts.path for one in learnt.patches)
        search_index.index(session, repo, learnt.whole["tags"], learnt.card.text, folders)
    if looks_at_tensors and learnt.whole["kind"] == "model" and learnt.fingerprint is None:
        _submit_fingerprint(session, jobs, repo, commit)


def queue_fingerprint(session: Session, jobs: JobQueue, repo: Repository, commit: str) -> None:
    """Queue the look at a mirrored commit's tensors, if it is a full model whose weights are all here by now."""
    facts = session.get(RevisionFacts, (repo.id, commit))
    if facts is None or facts.kind != "model" or facts.fingerprint is not None:
        return
    files = trees.by_path(session, repo, commit)
    weights = (files[path] for path, _ in _weights(files))
    if not mirror_reading.absent(session, repo, weights):
        _submit_fingerprint(session, jobs, repo, commit)


def _submit_fingerprint(session: Session, jobs: JobQueue, repo: Repository, commit: str) -> None:
    payload = {"repository_id": repo.id, "commit": commit}
    jobs.submit_in(session, FINGERPRINT_JOB, payload, key=f"{repo.id}@{commit}")


def _with_storable_base(facts: Facts) -> Facts:
    """The facts, their base forgotten where a database could not hold what the files call it."""
    base = facts.base
    texts = (base.name, base.revision, base.fingerprint, base.quantisation)
    if all(isinstance(text, str) and is_storable(text) for text in texts if text is not None):
        return facts
    problem = f"{facts.path or 'the root'}: what names its base is no text, or holds a NUL or half a character"
    return replace(facts, base=TrainingBase(), problems=(*facts.problems, problem))


def _weights(files: Mapping[str, Entry]) -> set[tuple[str, str]]:
    """Path and id of the files at the root that decide a model's tensors."""
    suffixes = (".safetensors", ".safetensors.index.json")
    return {(path, entry.oid) for path, entry in files.items() if "/" not in path and path.endswith(suffixes)}


def _known_fingerprint(hub: Hub, repo: Repository, commit: str) -> str | None:
    with hub.db.read() as session:
        facts = session.get(RevisionFacts, (repo.id, commit))
    return facts.fingerprint if facts else None


def _check_container(folder: Folder, path: str) -> None:
    read_header(lambda start, end: folder.read(path, start, end), folder.size(path), path)


def _unchanged(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> set[str]:
    """Sub-folders that hold the very same files."""

    def by_folder(files: Mapping[str, Entry]) -> dict[str, set[tuple[str, str]]]:
        found: dict[str, set[tuple[str, str]]] = {}
        for path, entry in files.items():
            found.setdefault(path.rpartition("/")[0], set()).add((path, entry.oid))
        return found

    old = by_folder(before)
    return {path for path, files in by_folder(after).items() if path and old.get(path) == files}


def _known(hub: Hub, caller: Caller, repo: Repository, head: str, folders: Collection[str]) -> list[Seen]:
    """What is known of the patches in these folders at `head`, so that thousands are not looked at for each commit.

    A patch without a base here, or with a problem, is none of them: either may have changed elsewhere.
    """
    if not folders:
        return []
    at = col(Patch.repository_id) == repo.id, col(Patch.commit_oid) == head, col(Patch.base_repository_id).is_not(None)
    with hub.db.read() as session:
        rows = [row for row in session.scalars(select(Patch).where(*at)) if row.path in folders and not row.problems]
        wanted = {row.base_repository_id for row in rows}
        readables = select(Repository).where(col(Repository.id).in_(wanted), readable(caller))
        owners = {one.id: one for one in session.scalars(readables)}
        return [
            _again(session, row, owners[row.base_repository_id]) for row in rows if row.base_repository_id in owners
        ]


def _again(session: Session, row: Patch, base: Repository) -> Seen:
    """A stored row as it was seen."""
    same = ("kind", "reason", "path", "rank_min", "rank_max", "parameter_count", "size_bytes", "layers", "dtypes")
    trained_on = TrainingBase(row.base_name, None, row.base_fingerprint, row.base_quantisation)
    facts = Facts(
        **{name: getattr(row, name) for name in same},
        effect=row.effect,  # type: ignore[arg-type]  # it was one when it was stored
        base=trained_on,
        targets=tuple(row.targets),
        parts=tuple(row.parts),
        warnings=tuple(row.warnings),
        **{name: getattr(row, name) for name in ("detail", "contract", "training")},
    )
    evidence = "fingerprint" if row.base_fingerprint else "declared"
    assert row.base_commit is not None  # it goes with the base
    whole = session.get(RevisionFacts, (base.id, row.base_commit))
    pinned = BaseRevision(base, row.base_commit, evidence, whole.fingerprint if whole else None)
    return Seen(facts, pinned, row.digest, ())


class _Bases:
    """The bases that one commit's patches were trained on, each opened once."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._opened: dict[tuple[str, str], Checkpoint | None] = {}

    def open(self, base: BaseRevision) -> Checkpoint | None:
        """Names and shapes, headers read and nothing else; None where it holds no weights, or cannot be read."""
        key = base.repo.id, base.commit
        if key not in self._opened:
            with self._hub.db.read() as session:
                folder = mirror_reading.folder(session, self._hub, base.repo, base.commit)
            self._opened[key] = _open_base(base, folder)
        return self._opened[key]


def _look(
    hub: Hub, caller: Caller, folder: Folder, facts: Facts, declared: Sequence[str], opened: _Bases, judge: Judge
) -> Seen:
    """The patch with its base found, its shapes checked against it and its values read. Raises UnfitPatch."""
    non_finite = judge.non_finite(folder, facts)
    if non_finite:
        told = [problem for problems in non_finite.values() for problem in problems]
        detail = {**facts.detail, fitness.NON_FINITE: non_finite}
        facts = replace(facts, detail=detail, problems=(*facts.problems, *told))
    if facts.kind == "model":
        return Seen(facts, None, None, facts.problems)
    with hub.db.read() as session:
        base = bases.locate(session, caller, facts.base, declared)
        if base and facts.base.quantisation == "unknown":
            facts = replace(facts, base=replace(facts.base, quantisation=_quantisation(session, base)))
    problems = facts.problems
    digest = None
    try:
        weights = opened.open(base) if base else None
        patch = patches.read(folder, facts.path, base=weights)
        digest = patch.digest
        facts = replace(facts, warnings=tuple(judge.warnings(folder, facts, patch.terms)))
    except (ShapeMismatch, UnknownSite) as error:
        problems = (*problems, judge.flag(str(error)))
    except MergingError as error:
        problems = (*problems, *({str(error)} - set(problems)))
    return Seen(facts, base, digest, problems)


def _quantisation(session: Session, base: BaseRevision) -> str:
    """How the base's own weights are stored: a patch that names it was trained on them."""
    here = col(Patch.repository_id) == base.repo.id, col(Patch.commit_oid) == base.commit, col(Patch.path) == ""
    row = session.scalars(select(Patch).where(*here, col(Patch.kind) == "model")).first()
    return row.base_quantisation if row else "unknown"


def _open_base(base: BaseRevision, folder: Folder) -> Checkpoint | None:
    """The base's names and shapes, headers read and nothing else; None where it holds no weights, or cannot be read.

    The headers of a mirrored base are read where they are, if need be.
    """
    name = f"{base.repo.full_name}@{base.commit[:12]}"
    try:
        return dequantised(Checkpoint.open(folder, name=name))
    except (InvalidPatch, NotFoldable, BlobNotFound, Unavailable, NotFound, Refused, TooLarge):
        return None


def _whole(folder: Folder, card: Card, found: Sequence[Facts]) -> dict[str, Any]:
    files = ("config.json", "adapter_config.json", "tokenizer_config.json")
    configs = tags.Configs(*(_json(folder, name) for name in files))
    declared = tags.base_models(card, configs, found)
    parameters: Counter[str] = Counter()
    for one in found:
        parameters.update(one.dtypes)
    kind, reason = _kind(found)
    return {
        "kind": kind,
        "reason": reason,
        "card": dict(card.data),
        "tags": tags.derive(card, configs, declared, folder.names()),
        "library": tags.library(card, configs, folder.names()),
        "pipeline_tag": tags.pipeline_tag(card, configs),
        "licence": card.text_of("license"),
        "base_models": declared,
        "parameters": dict(parameters),
        "parameter_count": parameters.total(),
        "size_bytes": sum(folder.size(name) for name in folder.names()),
        "config": configs.shown(),
    }


def _kind(found: Sequence[Facts]) -> tuple[str, str]:
    root = next((one for one in found if one.path == ""), None)
    if root:
        return root.kind, root.reason
    if found:
        return "patches", f"{len(found)} patches or models lie in folders: {', '.join(one.path for one in found[:5])}"
    return "unknown", "it holds no model and no patch"


def _json(folder: Folder, name: str) -> Mapping[str, Any]:
    """The JSON object in that file, {} where there is none or it is something else."""
    try:
        return read_json(folder, name)
    except (FileNotFoundError, InvalidPatch):
        return {}


def _parents(
    hub: Hub,
    caller: Caller,
    made_of: Sequence[RecipeInput],
    seen: Sequence[Seen],
    declared: Sequence[Mapping[str, str]],
) -> list[Parent]:
    """What the commit was made from: the inputs of its recipe, the base of each patch, what else the card declares.

    Each name once, by the best evidence.
    """
    found: dict[str, Parent] = {}
    with hub.db.read() as session:
        for one in made_of:
            found.setdefault(one.name, lineage.of_recipe(session, caller, one))
        for base in (one.base for one in seen if one.base):
            name = base.repo.full_name
            parent = Parent(name, "adapter", base.evidence, base.repo.id, base.commit, base.fingerprint)
            found.setdefault(name, parent)
        for declaration in declared:
            name, relation = declaration["name"], declaration["relation"]
            here = bases.named(session, caller, name)
            if here is None:
                found.setdefault(name, Parent(name, relation, "declared"))
            elif here.repo.id not in {parent.repository_id for parent in found.values()}:
                name = here.repo.full_name
                found[name] = Parent(name, relation, "declared", here.repo.id, here.commit, here.fingerprint)
    return list(found.values())


def _patch_row(repo: Repository, commit: str, learnt: Learnt, seen: Seen) -> Patch:
    facts, base, card = seen.facts, seen.base, learnt.card
    plain = asdict(facts)
    same = ("path", "kind", "reason", "effect", "rank_min", "rank_max", "parameter_count", "size_bytes")
    return Patch(
        repository_id=repo.id,
        commit_oid=commit,
        **{name: plain[name] for name in same},
        targets=list(facts.targets),
        layers=dict(facts.layers),
        dtypes=dict(facts.dtypes),
        detail=dict(facts.detail),
        contract=dict(facts.contract),
        training=dict(facts.training),
        parts=list(facts.parts),
        digest=seen.digest,
        base_name=facts.base.name or next((b["name"] for b in learnt.whole["base_models"]), None),
        base_repository_id=base.repo.id if base else None,
        base_commit=base.commit if base else None,
        base_fingerprint=facts.base.fingerprint,
        base_quantisation=facts.base.quantisation,
        licence=card.text_of("license"),
        training_method=tags.training_method(card),
        datasets=card.texts("datasets"),
        tasks=[learnt.whole["pipeline_tag"]] if learnt.whole["pipeline_tag"] else [],
        languages=card.texts("language"),
        problems=list(seen.problems),
        warnings=list(facts.warnings),
    )


def _evaluations(repo: Repository, commit: str, card: Card) -> list[Evaluation]:
    """The numbers in the card's model-index."""
    numbers = islice(_index_numbers(card.data), EVALUATIONS)
    return [Evaluation(repository_id=repo.id, commit_oid=commit, **fields) for fields in numbers]


def _index_numbers(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for model in _mappings(data.get("model-index")):
        for result in _mappings(model.get("results")):
            task, dataset = _named(result.get("task")), _named(result.get("dataset"))
            for metric in _mappings(result.get("metrics")):
                value = metric.get("value")
                if isinstance(value, int | float) and math.isfinite(value):
                    name = str(metric.get("type") or metric.get("name") or "score")
                    yield {"task": task, "dataset": dataset, "metric": name, "value": float(value)}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _named(value: Any) -> str | None:
    """The name, else the type, of a task or dataset of a model-index."""
    if not isinstance(value, Mapping):
        return None
    text = value.get("name") or value.get("type")
    return str(text) if text else None
