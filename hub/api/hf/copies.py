"""Repositories and large files taken over from another. Source: huggingface_hub/hf_api.py duplicate_repo and
_duplicate_lfs_files; list_lfs_files, permanently_delete_lfs_files."""

from typing import Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlmodel import Session
from starlette.responses import JSONResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import RepoId, find, read, write
from adapterhub.hub.api.hf.other_types import refuse_other_types
from adapterhub.hub.api.hf.repos import exists_already
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import next_link
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import InvalidRequest, RepoExists
from adapterhub.hub.services import copies, large_files, repos
from adapterhub.hub.services.access import require_content, require_owner
from adapterhub.hub.services.large_files import LargeFile
from adapterhub.storage.blobs import check_digest

router = APIRouter(prefix="/api/models/{namespace}/{name}", route_class=RawRoute)

PAGE_FILES = 100
SHARED_FILES = 1000


class Copy(BaseModel):
    """The repository to make, by its full name."""

    repository: str
    visibility: Literal["public", "private"] | None = None


class Target(BaseModel):
    """The repository that shall have the files."""

    name: str
    type: str | None = None


class SharedFile(BaseModel):
    """A large file of the source. The client sends `xetHash` and `filename` too, which name nothing here."""

    sha256: str


class Sharing(BaseModel):
    """Large files to share, and with whom."""

    target: Target
    files: list[SharedFile] = Field(max_length=SHARED_FILES)


@router.post("/duplicate")
async def duplicate(hub: HubDep, caller: CallerDep, public_url: PublicUrl, repo_id: RepoId, copy: Copy) -> Response:
    """Make a repository with the whole history of this one; all of it is there when this answers."""
    private = None if copy.visibility is None else copy.visibility == "private"
    await read(hub, lambda session: find(session, caller, repo_id))
    try:
        made = await threads.run(lambda: copies.duplicate(hub, caller, repo_id, copy.repository, private=private))
    except RepoExists as error:
        return exists_already(public_url, error)
    return JSONResponse({"url": f"{public_url}/{made.full_name}", "filesCopyPending": False})


@router.post("/lfs-files/duplicate")
async def share(hub: HubDep, caller: CallerDep, repo_id: RepoId, sharing: Sharing) -> dict[str, Any]:
    """Let another repository have large files of this one. `failed`: those that it cannot have, and why."""
    refuse_other_types(sharing.target.type)
    digests = [check_digest(f"sha256:{file.sha256}") for file in sharing.files]

    def work(session: Session) -> dict[str, str]:
        source = find(session, caller, repo_id)
        return copies.share(session, caller, source, repos.find(session, caller, sharing.target.name), digests)

    failed = await write(hub, work)
    return {"failed": [{"sha256": d.removeprefix("sha256:"), "error": reason} for d, reason in failed.items()]}


@router.get("/lfs-files")
async def list_files(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    repo_id: RepoId,
    cursor: str = "",
    limit: int = Query(PAGE_FILES, ge=1, le=PAGE_FILES),
) -> list[dict[str, Any]]:
    """The large files of all commits, a page at a time. Raises InvalidDigest for a cursor that is none."""
    if cursor:
        check_digest(cursor)

    def work(session: Session) -> list[LargeFile]:
        repo = find(session, caller, repo_id)
        require_content(session, caller, repo)
        return large_files.listing(session, repo, after=cursor, limit=limit + 1)

    found = await read(hub, work)
    if len(found) > limit:
        response.headers["Link"] = next_link(request, public_url, found[limit - 1].digest)
    return [_file_json(file) for file in found[:limit]]


def _file_json(file: LargeFile) -> dict[str, Any]:
    sha256 = file.digest.removeprefix("sha256:")
    return {
        "fileOid": sha256,
        "oid": sha256,
        "filename": file.path,
        "size": file.size_bytes,
        "pushedAt": timestamp(file.pushed_at),
    }


@router.post("/lfs-files/batch")
async def delete_files(hub: HubDep, caller: CallerDep, repo_id: RepoId) -> None:
    """Refuses to take files out of the history. Raises InvalidRequest, and as `require_owner`."""
    await read(hub, lambda session: require_owner(session, caller, find(session, caller, repo_id)))
    raise InvalidRequest(
        f"{repo_id}: a commit never changes here, because recipes, lineage and clients' caches name it by its id; "
        "delete the files in a new commit, or delete the repository"
    )
