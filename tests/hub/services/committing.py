"""A process that commits without end and prints each commit once it is acknowledged; it is there to be killed.

Run as: python committing.py DATABASE_URL FOLDER TOKEN
"""

import sys
from itertools import count
from pathlib import Path

from adapterhub.hub.context import Hub
from adapterhub.hub.db.engine import Database
from adapterhub.hub.jobs.queue import JobQueue
from adapterhub.hub.services.access import authenticate
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.settings import Settings
from adapterhub.storage.backends.local import LocalStore


def main(url: str, folder: str, token: str) -> None:
    """Commit one small and one large file at a time to ann/patch."""
    db = Database(url)
    hub = Hub(Settings(regular_max_bytes=1024), db, LocalStore(Path(folder) / "blobs"), b"", JobQueue(db))
    with db.read() as session:
        caller = authenticate(session, f"Bearer {token}")
    for n in count():
        operations = [AddRegular(f"small/{n}", b"%d" % n), AddRegular("large", b"%d" % n * 2000)]
        sys.stdout.write(commit(hub, caller, "ann/patch", "main", operations, str(n)).oid + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
