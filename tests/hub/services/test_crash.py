"""What was acknowledged survives a killed process, whole; what was not is absent, whole."""

import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import RevisionFacts
from adapterhub.hub.services import accounts, refs, repos, revisions, trees
from adapterhub.hub.services.access import Caller
from adapterhub.storage.blobs import digest_of

KILLS = 4


def test_killed_writers_lose_nothing_that_was_acknowledged(
    hub: Hub, admin: Caller, ann: Caller, tmp_path: Path
) -> None:
    token = "the token of the process that is killed"
    repo = repos.create(hub, ann, "ann/patch")
    hub.db.transact(
        lambda session: accounts.issue_token(session, admin, accounts.find(session, "ann"), "test", "write", text=token)
    )
    acknowledged: list[str] = []
    for kill in range(KILLS):
        acknowledged += run_and_kill(hub, tmp_path, token, after=2 + 3 * kill)
    with hub.db.read() as session:
        assert session.scalar(text("PRAGMA integrity_check")) == "ok"
        assert session.exec(text("PRAGMA foreign_key_check")).all() == []  # type: ignore[call-overload]
        commits = revisions.history(session, repo, refs.branch_head(session, repo, "main"), limit=1000)
        assert set(acknowledged) <= {row.oid for row in commits}
        for row in commits:
            assert session.get(RevisionFacts, (repo.id, row.oid))
            for file in trees.files(session, repo, row.oid):
                assert digest_of(b"".join(hub.store.read(file.digest))) == file.digest


def run_and_kill(hub: Hub, folder: Path, token: str, *, after: int) -> list[str]:
    """The commits that a process acknowledged before SIGKILL struck it, some time after its `after`-th."""
    script = Path(__file__).with_name("committing.py")
    command = [sys.executable, str(script), hub.db.url, str(folder), token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(after)]
        process.kill()
        seen += process.stdout.readlines()
    return [line.strip() for line in seen if line.endswith("\n")]
