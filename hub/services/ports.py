"""Ports: a patch carried onto another base by a job, published beside the original, with a report of its fit."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select
from sqlmodel import Session, col

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, LineageEdge, Repository, RepositoryName
from adapterhub.hub.errors import InvalidRequest, NotFound, Refused
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import commits, fingerprints, jobs, licences, mirror_reading, publish
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.cards import FILE as CARD
from adapterhub.hub.services.folders import RepositoryFolder
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.hub.services.publish import Written
from adapterhub.hub.services.resolve import Revision, find, look_up
from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.patch import Patch, TrainingBase
from adapterhub.merging.quantised import dequantised
from adapterhub.merging.recipes.canonical import MODEL
from adapterhub.merging.recipes.nodes import Ref

KIND = "port"
RELATION = "ported"
HOPS = 32
"""Most ports of ports that are followed back to the original."""


class Verdict(Protocol):
    """A portability report."""

    def as_json(self) -> Mapping[str, Any]: ...


class Result(Protocol):
    """What a port wrote, and what is to be thought of it."""

    @property
    def files(self) -> Sequence[Written]: ...

    @property
    def report(self) -> Verdict: ...


class Porter(Protocol):
    """`adapterhub.merging.porting.port`, which only a job process loads."""

    def __call__(
        self,
        patch: Patch,
        folder: RepositoryFolder,
        source: Checkpoint | None,
        target: Checkpoint,
        *,
        out: Path,
        base: TrainingBase,
        strategy: str,
    ) -> Result: ...


Reporter = Callable[[Patch, Checkpoint | None, Checkpoint], Verdict]
"""`adapterhub.merging.transfer.report.portability`."""


def request(hub: Hub, caller: Caller, patch: str, to: str, *, push: bool | str = True, strategy: str = "direct") -> Job:
    """A job that carries the patch named `patch`, or the one it was ported from, to the model named `to`.

    push: True commits to a branch `ported/<target>-<fingerprint>` of the patch's repository, a name to that repository,
    False only reports. Raises UnknownName, UnfitPatch, InvalidRequest, Forbidden, and as
    `mirror.ensure`, before anything is queued.
    """
    to_ref = Ref.of(to)
    for ref in (Ref.of(patch), to_ref):
        look_up(hub, caller, ref)
    with hub.db.read() as session:
        one, target = _original(session, caller, find(session, caller, Ref.of(patch))), find(session, caller, to_ref)
    if one.kind == MODEL:
        raise InvalidRequest(f"{patch}: a full model, not a patch; merge it, or extract a patch from it first")
    if target.kind != MODEL:
        raise InvalidRequest(f"{to}: a {target.kind} patch, not a model; name the base to port to")
    repo_id = push if isinstance(push, str) else one.repo.full_name if push else None
    if repo_id:
        publish.require_target(hub, caller, repo_id)
    payload = {
        "patch": Ref(one.repo.full_name, None, one.path).address,
        "patch_commit": one.commit,
        "to": to_ref.address,
        "to_commit": target.commit,
        "push": push,
        "strategy": strategy,
        **jobs.power_of(caller),
    }
    key = json.dumps(
        [jobs.asker(caller), one.repo.id, one.commit, one.path, target.repo.id, target.commit, push, strategy]
    )
    return hub.jobs.submit(KIND, payload, key=key, owner_id=caller.account_id)


def inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What the job reads: the patch, its new base, and the one it was trained on where that is here."""
    asked = job.payload
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
        one = find(session, caller, Ref.of(asked["patch"]), asked["patch_commit"])
        goal = find(session, caller, Ref.of(asked["to"]), asked["to_commit"])
        source = _source(session, caller, one)
    return [one.wanted, goal.wanted, *([source] if source else [])]


def run(hub: Hub, job: Job, report: Report, *, porter: Porter, reporter: Reporter) -> Mapping[str, Any]:
    """The port that the job asks for, done and committed, or only reported on; the job's result."""
    asked = job.payload
    with hub.db.read() as session:
        caller = jobs.caller_of(session, job)
        one = find(session, caller, Ref.of(asked["patch"]), asked["patch_commit"])
        goal = find(session, caller, Ref.of(asked["to"]), asked["to_commit"])
        folder = mirror_reading.folder(session, hub, one.repo, one.commit)
        target = _checkpoint(session, hub, goal.wanted)
        trained_on = _source(session, caller, one)
        source = _checkpoint(session, hub, trained_on) if trained_on else None
    report.progress(0, 2, "steps", "reading the patch and both bases")
    patch = patches.read(folder, one.path, base=target)
    if not asked["push"]:
        return {"report": dict(reporter(patch, source, target).as_json())}
    base = TrainingBase(
        goal.repo.full_name, goal.commit, fingerprints.of(hub, goal.repo.id, goal.commit, target), "none"
    )
    with publish.workplace(hub, job) as out:
        result = porter(patch, folder, source, target, out=out, base=base, strategy=asked["strategy"])
        card = licences.stated((out / CARD).read_text(encoding="utf-8"), licences.join([one.licence]))
        files = publish.rewritten(out, result.files, CARD, card)
        report.progress(1, 2, "steps", "committing")
        report.hold()
        done = _publish(hub, caller, asked["push"], one, goal, base, out, files)
    return {
        "repo": done.repo_id,
        "branch": done.branch,
        "commit": done.oid,
        "is_new": done.is_new,
        "report": dict(result.report.as_json()),
    }


def _publish(
    hub: Hub,
    caller: Caller,
    push: bool | str,
    one: Revision,
    goal: Revision,
    base: TrainingBase,
    out: Path,
    files: Sequence[Written],
) -> commits.CommitResult:
    message = f"Port {one.repo.full_name}@{one.commit[:10]} to {goal.repo.full_name}@{goal.commit[:10]}"
    if isinstance(push, str):
        done = publish.to_repository(hub, caller, push, out, files, message)
    else:
        mark = (base.fingerprint or "").removeprefix("sha256:")[:8]
        branch = f"ported/{goal.repo.full_name.partition('/')[2]}-{mark}"
        done = publish.to_branch(hub, caller, one.repo.full_name, branch, one.commit, out, files, message)
    if done.is_new:
        hub.db.transact(lambda session: _link(session, one, done))
    return done


def _link(session: Session, one: Revision, done: commits.CommitResult) -> None:
    """Lineage of a ported patch: the original that it was carried from."""
    child = session.get_one(RepositoryName, done.repo_id.casefold())
    session.add(
        LineageEdge(
            child_repository_id=child.repository_id,
            child_commit=done.oid,
            parent_repository_id=one.repo.id,
            parent_name=one.repo.full_name,
            parent_commit=one.commit,
            relation=RELATION,
            evidence="recipe",
        )
    )


def _original(session: Session, caller: Caller, one: Revision) -> Revision:
    """The patch that was trained, where `one` is a port of it, or a port of a port; else `one` itself."""
    for _ in range(HOPS):
        edge = session.scalars(
            select(LineageEdge).where(
                col(LineageEdge.child_repository_id) == one.repo.id,
                col(LineageEdge.child_commit) == one.commit,
                col(LineageEdge.relation) == RELATION,
            )
        ).first()
        parent = session.get(Repository, edge.parent_repository_id) if edge else None
        if edge is None or parent is None:
            return one
        one = find(session, caller, Ref(parent.full_name, edge.parent_commit, one.path))
    return one


def _source(session: Session, caller: Caller, one: Revision) -> Wanted | None:
    """The base that the patch was trained on, where it is on this hub and the caller may read it."""
    base = session.get(Repository, one.patch.base_repository_id) if one.patch.base_repository_id else None
    if base is None or one.patch.base_commit is None:
        return None
    try:
        require_content(session, caller, base)
    except (NotFound, Refused):
        return None
    return Wanted(base, one.patch.base_commit)


def _checkpoint(session: Session, hub: Hub, base: Wanted) -> Checkpoint:
    folder = mirror_reading.folder(session, hub, base.repo, base.commit)
    return dequantised(Checkpoint.open(folder, name=f"{base.repo.full_name}@{base.commit}"))
