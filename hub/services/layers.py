"""The picture of a patch by layer: norms that a job computes once for each patch's content."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Patch, Repository
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import mirror_reading, resolve
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.patch import Patch as ReadPatch
from adapterhub.merging.quantised import dequantised
from adapterhub.merging.recipes.nodes import Ref
from adapterhub.merging.sites import layer_of

KIND = "layers"

LayerNorms = Callable[[ReadPatch, Checkpoint | None], Sequence[Mapping[str, Any]]]
"""(patch, base or None) -> rows with "site" and "norm". Source: merging/analysis/norms.py."""


def picture(hub: Hub, caller: Caller, repo_id: str, revision: str | None = None, path: str = "") -> dict[str, Any]:
    """{"state", "job", "error", "sites"} of a patch; the first who asks queues the job. A model has no sites.

    Raises UnknownName, RevisionNotFound, InvalidRequest.
    """
    with hub.db.read() as session:
        found = resolve.find(session, caller, Ref(repo_id, revision, path))
    if found.kind == resolve.MODEL or found.patch.digest is None:
        return {"state": "succeeded", "job": None, "error": None, "sites": []}
    job = hub.jobs.latest(KIND, found.patch.digest)
    if job is None:
        job = hub.jobs.submit(KIND, {"patch_id": found.patch.id}, key=found.patch.digest)
    return {"state": job.state, "job": job.id, "error": job.error, "sites": (job.result or {}).get("sites", [])}


def inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What the job reads: the patch that it names, and its base."""
    with hub.db.read() as session:
        row = session.get_one(Patch, str(job.payload["patch_id"]))
        repo = session.get_one(Repository, row.repository_id)
        base = _base(session, repo, row)
    return [Wanted(repo, row.commit_oid, row.path), *([base] if base else [])]


def run(hub: Hub, job: Job, report: Report, *, layer_norms: LayerNorms) -> Mapping[str, Any]:
    """The norm of every site of the patch that the job names; sites without one, for want of the base, are left out."""
    with hub.db.read() as session:
        row = session.get_one(Patch, str(job.payload["patch_id"]))
        repo = session.get_one(Repository, row.repository_id)
        folder = mirror_reading.folder(session, hub, repo, row.commit_oid)
        wanted = _base(session, repo, row)
        base = _checkpoint(session, hub, wanted) if wanted else None
    rows = layer_norms(patches.read(folder, row.path, base=base), base)
    return {"sites": [_site(one) for one in rows if one["norm"] is not None]}


def _base(session: Session, repo: Repository, patch: Patch) -> Wanted | None:
    """The patch's base, unless that is private to others than the patch's owner."""
    base = session.get(Repository, patch.base_repository_id) if patch.base_repository_id else None
    if (
        base is None
        or patch.base_commit is None
        or base.deleted_at
        or (base.is_private and base.owner_id != repo.owner_id)
    ):
        return None
    return Wanted(base, patch.base_commit)


def _checkpoint(session: Session, hub: Hub, base: Wanted) -> Checkpoint:
    return dequantised(Checkpoint.open(mirror_reading.folder(session, hub, base.repo, base.commit)))


def _site(row: Mapping[str, Any]) -> dict[str, Any]:
    site = str(row["site"])
    layer = layer_of(site)
    module = site.removesuffix(".weight")
    if layer != "-":
        module = module.partition(f".{layer}.")[2] or module
    return {"site": site, "layer": layer, "module": module, "norm": row["norm"]}
