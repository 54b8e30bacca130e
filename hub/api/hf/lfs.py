"""Git-LFS uploads, transfer "basic": ask, send the bytes to a signed link, have them verified.

Source: huggingface_hub/lfs.py and git-lfs docs/api/batch.md. Downloads are in `lfs_downloads`.
"""

from typing import Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlmodel import Session
from starlette.responses import JSONResponse

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api import threads
from adapterhub.hub.api.bodies import pour
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.errors import status_of
from adapterhub.hub.api.hf import lfs_downloads
from adapterhub.hub.api.hf.addressing import RepoId, find, read
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import Invalid, InvalidRequest, TooLarge
from adapterhub.hub.services import lfs
from adapterhub.hub.services.access import require_write
from adapterhub.storage.errors import InvalidDigest

router = APIRouter(route_class=RawRoute)

LFS_JSON = "application/vnd.git-lfs+json"
BATCH_OBJECTS = 1000


class LargeFile(BaseModel):
    """A large file by its sha256."""

    oid: str
    size: int = Field(ge=0)


class Batch(BaseModel):
    """Large files that the client wants to move."""

    operation: Literal["upload", "download"]
    objects: list[LargeFile] = Field(max_length=BATCH_OBJECTS)
    hash_algo: str = "sha256"


@router.post("/{namespace}/{name}.git/info/lfs/objects/batch")
async def batch(hub: HubDep, caller: CallerDep, public_url: PublicUrl, repo_id: RepoId, wanted: Batch) -> Response:
    """For each file a link to PUT it to; none for those that the repository has, and a reason for those refused."""
    if wanted.hash_algo != "sha256":
        raise InvalidRequest(f"hash_algo {wanted.hash_algo!r}: files are named by sha256 here")
    if wanted.operation == "download":
        named = [(file.oid, file.size) for file in wanted.objects]
        return await lfs_downloads.batch(hub, caller, public_url, repo_id, named)

    def work(session: Session) -> list[dict[str, Any]]:
        repo = find(session, caller, repo_id)
        require_write(session, caller, repo)

        def answer(file: LargeFile) -> dict[str, Any]:
            shape = {"oid": file.oid, "size": file.size}
            try:
                signature = lfs.upload_link(session, hub, caller, repo, f"sha256:{file.oid}", file.size)
            except (Invalid, InvalidDigest, TooLarge) as error:
                return {**shape, "error": _error_json(error)}
            if signature is None:
                return shape
            upload = {"href": f"{public_url}/uploads/{file.oid}?signature={signature}", "expires_in": lfs.LINK_TTL_S}
            verify = {"href": f"{public_url}/{repo.full_name}.git/info/lfs/objects/verify"}
            return {**shape, "authenticated": True, "actions": {"upload": upload, "verify": verify}}

        return [answer(file) for file in wanted.objects]

    objects = await read(hub, work)
    return JSONResponse({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, media_type=LFS_JSON)


def _error_json(error: AdapterHubError) -> dict[str, Any]:
    return {"code": status_of(error), "message": str(error)}


@router.put("/uploads/{oid}")
async def upload(request: Request, hub: HubDep, oid: str, signature: str = Query()) -> None:
    """Take the bytes of one large file, hashing them on their way to disk. The signature is the only right needed.

    Raises InvalidToken; TooLarge for more bytes than announced, DigestMismatch for others: nothing is kept then.
    """
    allowed = lfs.ticket(hub, signature, f"sha256:{oid}")
    writer = await threads.run(lambda: hub.store.writer(limit_bytes=allowed.size_bytes))
    try:
        await pour(request, writer.write, allowed.size_bytes)
        await threads.run(lfs.store, hub, allowed, writer)
    finally:
        await threads.run(writer.abort)


@router.post("/{namespace}/{name}.git/info/lfs/objects/verify")
async def verify(hub: HubDep, caller: CallerDep, repo_id: RepoId, file: LargeFile) -> None:
    """200 when those bytes arrived. Raises InvalidRequest when they did not, or not all."""

    def work(session: Session) -> bool:
        repo = find(session, caller, repo_id)
        require_write(session, caller, repo)
        return lfs.is_stored(session, repo, f"sha256:{file.oid}", file.size)

    if not await read(hub, work):
        raise InvalidRequest(f"{file.oid} did not arrive with {file.size} bytes; send it again")
