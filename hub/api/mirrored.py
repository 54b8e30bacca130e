"""Files of mirrors, brought here before the first of their bytes is sent on."""

from collections.abc import Iterable

from adapterhub.hub.api import threads
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import mirror_files
from adapterhub.hub.services.trees import Entry

FETCHED_AT_ONCE = 8
"""Downloads from another hub at once; others wait their turn, holding no thread."""


async def bring(hub: Hub, repo: Repository, commit: str, files: Iterable[Entry]) -> None:
    """Have those files of a mirror here. If the client gives up meanwhile, a download goes on.

    Raises as `mirror_files.fetch`.
    """
    for entry in files:
        async with threads.turns("mirrored bytes", FETCHED_AT_ONCE):
            await threads.run(mirror_files.fetch, hub, repo, commit, entry)
