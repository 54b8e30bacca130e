"""What a request asks for of another hub, brought here before it is answered."""

from collections.abc import Iterable

from fastapi import Request

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import NotAuthenticated
from adapterhub.hub.services import mirror, mirror_files
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.trees import Entry

FETCHED_AT_ONCE = 8
"""Downloads from another hub at once; others wait their turn, holding no thread."""


async def repo_id(request: Request, hub: HubDep, caller: CallerDep, namespace: str, name: str) -> str:
    """The name in full; where it is read and another hub is mirrored, what is there has been brought here by then."""
    found = f"{namespace}/{name}"
    is_read = request.method in ("GET", "HEAD") or "/paths-info/" in request.url.path
    if is_read and hub.settings.mirror_url is not None:
        revision = request.path_params.get("revision") or request.query_params.get("revision")
        async with threads.turns("mirror", mirror.LOOKS_AT_ONCE):
            warning = await threads.run(mirror.ensure, hub, caller, found, revision)
        if warning is not None:
            request.state.warning = warning
    return found


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
