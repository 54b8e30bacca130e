"""Files of mirrors, brought here before the first of their bytes is sent on."""

from collections.abc import Iterable

from adapterhub.hub.api import threads
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import NotAuthenticated
from adapterhub.hub.services import mirror_files
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.trees import Entry

FETCHED_AT_ONCE = 8
"""Downloads from another hub at once; others wait their turn, holding no thread."""


async def bring(hub: Hub, caller: Caller, repo: Repository, commit: str, files: Iterable[Entry]) -> None:
    """Have those files of a mirror here. If the client gives up meanwhile, a download goes on.

    Raises NotAuthenticated for who has no token, unless `mirror_anonymous`; as `mirror_files.fetch`.
    """
    files = list(files)
    if files and caller.is_anonymous and not hub.settings.mirror_anonymous:
        raise NotAuthenticated(
            f"{repo.full_name}/{files[0].path}: its bytes are at another hub, and are fetched for who sends a token; "
            "log in, or have an administrator set ADAPTERHUB_MIRROR_ANONYMOUS"
        )
    await fetch(hub, repo, commit, files)


async def fetch(hub: Hub, repo: Repository, commit: str, files: Iterable[Entry]) -> None:
    """As `bring`, whoever asks."""
    for entry in files:
        async with threads.turns("mirrored bytes", FETCHED_AT_ONCE):
            await threads.run(mirror_files.fetch, hub, repo, commit, entry)
