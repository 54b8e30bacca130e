"""The job that reads a full model's weights and keeps who it is, and which of them are NaN or infinity."""

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Patch, Repository, RevisionFacts
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import fitness, mirror_reading
from adapterhub.hub.services.mirror_inputs import Wanted
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.fingerprint import fingerprint


def inputs(hub: Hub, job: Job) -> list[Wanted]:
    """What the job reads: the model that it names."""
    with hub.db.read() as session:
        repo = session.get_one(Repository, str(job.payload["repository_id"]))
    return [Wanted(repo, str(job.payload["commit"]))]


def run(hub: Hub, job: Job, report: Report) -> Mapping[str, Any]:
    """The fingerprint of the full model in the commit that the job names, kept with the commit's facts."""
    repository_id, commit = str(job.payload["repository_id"]), str(job.payload["commit"])
    with hub.db.read() as session:
        repo = session.get_one(Repository, repository_id)
        folder = mirror_reading.folder(session, hub, repo, commit)
    checkpoint = Checkpoint.open(folder, name=repo.full_name)
    root = of(hub, repository_id, commit, checkpoint)
    found = {file: told for file in checkpoint.files if (told := fitness.non_finite(folder, file))}
    if found:
        hub.db.transact(lambda session: _flag(session, repository_id, commit, found))
    return {"fingerprint": root, fitness.NON_FINITE: sum(map(len, found.values()))}


def _flag(session: Session, repository_id: str, commit: str, found: Mapping[str, list[str]]) -> None:
    """Keep with the model, in the root of that commit, which of its tensors hold NaN or infinity."""
    at = col(Patch.repository_id) == repository_id, col(Patch.commit_oid) == commit, col(Patch.path) == ""
    row = session.scalars(select(Patch).where(*at)).one()
    told = [problem for problems in found.values() for problem in problems]
    row.problems = [*(one for one in row.problems if one not in told), *told]
    row.detail = {**row.detail, fitness.NON_FINITE: dict(found)}
    session.add(row)


def of(hub: Hub, repository_id: str, commit: str, checkpoint: Checkpoint) -> str:
    """The fingerprint of that commit's model, computed and kept where it is not known yet."""
    with hub.db.read() as session:
        facts = session.get_one(RevisionFacts, (repository_id, commit))
    if facts.fingerprint:
        return facts.fingerprint
    root = fingerprint(checkpoint).root

    def keep(session: Session) -> None:
        row = session.get_one(RevisionFacts, (repository_id, commit))
        row.fingerprint = root
        session.add(row)

    hub.db.transact(keep)
    return root
