"""Git-LFS uploads: ask, send the bytes to a signed link, whole or in parts, have them verified.

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
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import Invalid, InvalidRequest, TooLarge
from adapterhub.hub.services import lfs, lfs_parts
from adapterhub.hub.services.access import require_upload
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
    transfers: list[str] = Field(default_factory=list)
    objects: list[LargeFile] = Field(max_length=BATCH_OBJECTS)
    hash_algo: str = "sha256"


class Part(BaseModel):
    """A part by its number, from 1, and the ETag that its upload was answered with."""

    partNumber: int  # noqa: N815  the client's spelling
    etag: str = Field(max_length=200)


class Completion(BaseModel):
    """Every part of a file, in order."""

    oid: str
    parts: list[Part] = Field(max_length=lfs_parts.PARTS)


@router.post("/{namespace}/{name}.git/info/lfs/objects/batch")
async def batch(hub: HubDep, caller: CallerDep, public_url: PublicUrl, repo_id: RepoId, wanted: Batch) -> Response:
    """For each file a link to PUT it to; none for those that the repository has, and a reason for those refused."""
    if wanted.hash_algo != "sha256":
        raise InvalidRequest(f"hash_algo {wanted.hash_algo!r}: files are named by sha256 here")
    if wanted.operation == "download":
        named = [(file.oid, file.size) for file in wanted.objects]
        return await lfs_downloads.batch(hub, caller, public_url, repo_id, named)

    in_parts = "multipart" in wanted.transfers

    def work(session: Session) -> list[dict[str, Any]]:
        repo = find(session, caller, repo_id)
        require_upload(session, caller, repo)
        verify = {"href": f"{public_url}/{repo.full_name}.git/info/lfs/objects/verify"}

        def answer(file: LargeFile) -> dict[str, Any]:
            shape = {"oid": file.oid, "size": file.size}
            try:
                ticket = lfs.wanted(session, hub, caller, repo, f"sha256:{file.oid}", file.size)
            except (Invalid, InvalidDigest, TooLarge) as error:
                return {**shape, "error": _error_json(error)}
            if ticket is None:
                return shape
            upload = _upload_action(hub, f"{public_url}/uploads/{file.oid}", ticket, in_parts=in_parts)
            return {**shape, "authenticated": True, "actions": {"upload": upload, "verify": verify}}

        return [answer(file) for file in wanted.objects]

    objects = await read(hub, work)
    transfer = "multipart" if any(_is_in_parts(answer) for answer in objects) else "basic"
    return JSONResponse({"transfer": transfer, "objects": objects, "hash_algo": "sha256"}, media_type=LFS_JSON)


def _upload_action(hub: Hub, url: str, ticket: lfs.Ticket, *, in_parts: bool) -> dict[str, Any]:
    """Where to send the bytes. In parts: a link for each in `header`, and in `href` where to say that all are there."""
    if not (in_parts and lfs_parts.is_for(hub, ticket.size_bytes)):
        return {"href": f"{url}?signature={lfs.sign(hub, ticket)}", "expires_in": lfs.LINK_TTL_S}
    upload, signature = lfs_parts.begin(hub, ticket)
    header = {"chunk_size": str(upload.part_bytes)}
    for number in range(1, upload.count + 1):
        header[f"{number:05d}"] = f"{url}/parts/{number}?signature={signature}"
    return {"href": f"{url}/complete?signature={signature}", "header": header, "expires_in": lfs.LINK_TTL_S}


def _is_in_parts(answer: dict[str, Any]) -> bool:
    return "header" in answer.get("actions", {}).get("upload", {})


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


@router.put("/uploads/{oid}/parts/{number}")
async def upload_part(
    request: Request, response: Response, hub: HubDep, oid: str, number: int, signature: str = Query()
) -> None:
    """Take the bytes of one part to their place on disk; the ETag header names what arrived.

    Raises InvalidToken; InvalidRequest for a part that does not exist or is not whole, TooLarge for one that is longer.
    """
    opened = lfs_parts.opened(hub, signature, f"sha256:{oid}")
    writer = await threads.run(lfs_parts.PartWriter, hub, opened, number)
    try:
        await pour(request, writer.write, opened.size_of(number))
        response.headers["ETag"] = f'"{await threads.run(writer.finish)}"'
    finally:
        await threads.run(writer.close)


@router.post("/uploads/{oid}/complete")
async def complete(hub: HubDep, oid: str, done: Completion, signature: str = Query()) -> None:
    """Check that every part arrived and make one file of them. Raises InvalidToken, InvalidRequest, DigestMismatch."""
    opened = lfs_parts.opened(hub, signature, f"sha256:{oid}")
    await threads.run(lfs_parts.complete, hub, opened, [(part.partNumber, part.etag) for part in done.parts])


@router.post("/{namespace}/{name}.git/info/lfs/objects/verify")
async def verify(hub: HubDep, caller: CallerDep, repo_id: RepoId, file: LargeFile) -> None:
    """200 when those bytes arrived. Raises InvalidRequest when they did not, or not all."""

    def work(session: Session) -> bool:
        repo = find(session, caller, repo_id)
        require_upload(session, caller, repo)
        return lfs.is_stored(session, repo, f"sha256:{file.oid}", file.size)

    if not await read(hub, work):
        raise InvalidRequest(f"{file.oid} did not arrive with {file.size} bytes; send it again")
