"""File contents by name: HEAD tells what a file is, GET streams it. Source: huggingface_hub/file_download.py."""

from fastapi import APIRouter, Request, Response
from sqlmodel import Session
from starlette.background import BackgroundTask

from adapterhub.hub.api import mirrored, threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.downloads import file_response
from adapterhub.hub.api.hf.addressing import RepoId, find_commit, read, write
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import EntryNotFound
from adapterhub.hub.services import mirror_files, repos, trees
from adapterhub.hub.services.access import require_content
from adapterhub.hub.services.trees import Entry

router = APIRouter(route_class=RawRoute)

COUNTED = frozenset({"config.json", "adapter_config.json", "patch.json"})
"""Files whose download counts as one of the repository: every loader reads one of them, and the others come along."""


@router.api_route("/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
async def resolve(
    request: Request, hub: HubDep, caller: CallerDep, repo_id: RepoId, revision: str, path: str
) -> Response:
    """The file at that revision. Raises RevisionNotFound, and EntryNotFound, which names the commit for the cache."""

    def work(session: Session) -> tuple[Repository, str, Entry, bool]:
        repo, commit = find_commit(session, caller, repo_id, revision)
        require_content(session, caller, repo)
        entry = trees.entry(session, repo, commit, path)
        if entry.is_folder:
            raise EntryNotFound(repo_id, path, commit)
        is_absent = request.method == "GET" and mirror_files.is_absent(session, repo, entry)
        return repo, commit, entry, is_absent

    repo, commit, entry, is_absent = await read(hub, work)
    if is_absent:
        await mirrored.bring(hub, caller, repo, commit, [entry])
    elif entry.is_lfs and hub.settings.mirror_url is not None:
        await threads.run(mirror_files.touch, hub, repo.id, entry.digest)
    response = await file_response(request, hub, entry, commit)
    is_counted = request.method == "GET" and response.status_code == 200 and path in COUNTED
    if is_counted and "x-hf-download-counter" in request.headers:
        response.background = BackgroundTask(write, hub, lambda session: repos.count_download(session, repo.id))
    return response
