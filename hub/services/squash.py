"""A branch's history made one commit: the same files without what led there."""

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import HeadMoved
from adapterhub.hub.services import audit, ingest, refs, repos, revisions, trees
from adapterhub.hub.services.access import Caller, require_write


def squash(hub: Hub, caller: Caller, repo_id: str, branch: str, message: str) -> str:
    """The one commit that `branch` stands at now, without a parent; earlier ones stay readable by their ids.

    Raises RepoNotFound, Forbidden, RevisionNotFound; HeadMoved when somebody commits at the same time.
    """
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        require_write(session, caller, repo)
        head = refs.branch_head(session, repo, branch)
        files = trees.by_path(session, repo, head)
    draft = revisions.draft(repo, caller, {}, files, (), message)
    learnt = ingest.examine(hub, caller, repo, head, files, files)

    def write(session: Session) -> None:
        present = session.get_one(Repository, repo.id)
        require_write(session, caller, present)
        revisions.write(session, draft)
        if not refs.move_ref(session, present, refs.BRANCH + branch, head, draft.row.oid):
            raise HeadMoved(f"{present.full_name}: {branch} moved meanwhile; try again")
        ingest.record(session, hub.jobs, present, branch, draft, learnt)
        detail = {"ref": refs.BRANCH + branch, "squashed": True}
        name, after = present.full_name, draft.row.oid
        audit.record(session, caller, "repo.commit", present.id, name, before=head, after=after, detail=detail)

    hub.db.transact(write)
    return draft.row.oid
