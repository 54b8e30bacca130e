"""The job that reads a full model's weights once and keeps who it is."""

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Repository, RevisionFacts
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import mirror_reading
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
    root = of(hub, repository_id, commit, Checkpoint.open(folder, name=repo.full_name))
    return {"fingerprint": root}


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
