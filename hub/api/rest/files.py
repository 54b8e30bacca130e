"""Files by plain HTTP: put, resumed, read by range, and a whole revision as one tar.

curl -T model.safetensors -H "Authorization: Bearer $TOKEN" $HUB/api/patches/demo/code/files/model.safetensors
curl -I …/files/model.safetensors?upload=1          tells Upload-Offset of a transfer that broke off
curl -C OFFSET -T model.safetensors …               goes on from there
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated

from anyio import CancelScope
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.responses import JSONResponse, StreamingResponse

from adapterhub.hub.api import mirrored, threads
from adapterhub.hub.api.bodies import pour
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.downloads import file_response
from adapterhub.hub.api.rest.schemas import PartialUpload, StoredFile
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import EntryNotFound, InvalidRequest
from adapterhub.hub.services import archive, mirror_files, parts, refs, repos, trees
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.parts import Part, Stored, Target
from adapterhub.hub.services.trees import Entry

router = APIRouter(prefix="/api/patches/{namespace}/{name}", tags=["files"])

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_DIGEST_HEADER = re.compile(r"sha-256=:?([A-Za-z0-9+/=]{44}):?", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file of `total` bytes are in the body."""

    start: int
    end: int
    total: int


@router.put(
    "/files/{path:path}",
    status_code=201,
    response_model=StoredFile,
    responses={202: {"model": PartialUpload, "description": "Kept; the rest is awaited from Upload-Offset."}},
)
async def put_file(
    namespace: str,
    name: str,
    path: str,
    request: Request,
    hub: HubDep,
    caller: CallerDep,
    branch: Annotated[str | None, Query(max_length=200)] = None,
    message: Annotated[str, Query(max_length=1000)] = "",
    content_range: Annotated[str | None, Header(max_length=100)] = None,
    x_content_sha256: Annotated[str | None, Header(max_length=100)] = None,
    digest: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Store the body as a file and commit it; the answer tells its sha256.

    `Content-Range: bytes a-b/total` sends a part. What arrived of a transfer that broke off is kept, and
    `HEAD …?upload=1` tells from which byte to go on. `X-Content-Sha256` (hexadecimal) or `Digest: sha-256=` (base64)
    announces the content: other bytes are refused and not kept.
    """
    expected = _expected(x_content_sha256, digest)
    piece = _piece(content_range, request.headers.get("content-length"))
    target = await threads.run(parts.check_target, hub, caller, f"{namespace}/{name}", branch, path)
    if piece is None:
        return _created(await _put_unmeasured(request, hub, target, expected, message))
    with await threads.run(Part, hub, target, piece.start, piece.total) as part:
        try:
            await pour(request, part.write, piece.end - piece.start)
        finally:
            # whatever ended the transfer, what arrived is the sender's to go on from
            with CancelScope(shield=True):
                arrived = await threads.run(part.arrived)
        if arrived < piece.total:
            partial = PartialUpload(path=path, offset=arrived, total=piece.total)
            return JSONResponse(partial.model_dump(), 202, {"Upload-Offset": str(arrived)})
        return _created(await threads.run(part.finish, expected, message))


@router.get("/files/{path:path}", response_class=Response, dependencies=[Depends(mirrored.repo_id)])
async def get_file(
    namespace: str, name: str, path: str, request: Request, hub: HubDep, caller: CallerDep, revision: str | None = None
) -> Response:
    """Read a file, whole or one byte range of it."""
    repo, commit, entry, is_absent = await threads.run(_entry, hub, caller, f"{namespace}/{name}", revision, path)
    if is_absent and request.method == "GET":
        await mirrored.bring(hub, caller, repo, commit, [entry])
    return await file_response(request, hub, entry, commit)


@router.head("/files/{path:path}", response_class=Response)
async def head_file(
    namespace: str,
    name: str,
    path: str,
    request: Request,
    hub: HubDep,
    caller: CallerDep,
    revision: str | None = None,
    branch: Annotated[str | None, Query(max_length=200)] = None,
    upload: bool = False,
) -> Response:
    """Tell size and ETag of a file; with `upload=1`, how much of it arrived in a transfer that broke off."""
    if not upload:
        return await get_file(namespace, name, path, request, hub, caller, revision)
    target = await threads.run(parts.check_target, hub, caller, f"{namespace}/{name}", branch, path)
    arrived, total = await threads.run(parts.offset, hub, target)
    return Response(headers={"Upload-Offset": str(arrived), "Upload-Length": str(total), "Cache-Control": "no-store"})


@router.get("/archive", response_class=StreamingResponse, dependencies=[Depends(mirrored.repo_id)])
async def get_archive(
    namespace: str, name: str, hub: HubDep, caller: CallerDep, revision: str | None = None
) -> StreamingResponse:
    """Read a whole revision as a tar: one folder, named after the repository and the commit."""
    found = await threads.run(_archive, hub, caller, f"{namespace}/{name}", revision)
    await mirrored.bring(hub, caller, found.repo, found.commit, found.absent)
    headers = {
        "Content-Length": str(found.size_bytes),
        "Content-Disposition": f'attachment; filename="{found.folder}.tar"',
        "ETag": f'"{found.commit}"',
        "X-Repo-Commit": found.commit,
    }
    return StreamingResponse(threads.iterate(found.pieces(hub)), headers=headers, media_type="application/x-tar")


async def _put_unmeasured(request: Request, hub: Hub, target: Target, expected: str | None, message: str) -> Stored:
    """The file stored from a body of unknown length, which cannot be resumed: its end is the file's."""
    limit_bytes = hub.settings.file_max_bytes
    with await threads.run(lambda: hub.store.writer(limit_bytes=limit_bytes)) as writer:
        await pour(request, writer.write, limit_bytes)
        stat = await threads.run(writer.commit, expected)
    return await threads.run(parts.store, hub, target, stat, message)


def _created(stored: Stored) -> Response:
    sha256 = stored.digest.removeprefix("sha256:")
    shown = StoredFile(path=stored.path, size=stored.size_bytes, sha256=sha256, commit=stored.commit)
    return JSONResponse(shown.model_dump(), 201, {"X-Repo-Commit": stored.commit})


def _piece(content_range: str | None, content_length: str | None) -> Piece | None:
    """What the body holds; None when nobody said how long it is. Raises InvalidRequest."""
    if content_range is None:
        return None if content_length is None else Piece(0, int(content_length), int(content_length))
    match = _CONTENT_RANGE.fullmatch(content_range)
    first, last, total = (int(number) for number in match.groups()) if match else (1, 0, 0)
    if not first <= last < total:
        raise InvalidRequest(f"Content-Range {content_range!r}: write bytes FIRST-LAST/TOTAL, counted from 0")
    if content_length is not None and int(content_length) != last + 1 - first:
        raise InvalidRequest(f"Content-Range {content_range!r}: the body has {content_length} bytes")
    return Piece(first, last + 1, total)


def _expected(sha256: str | None, digest: str | None) -> str | None:
    """The digest that the sender announced. Raises InvalidRequest when it is not one."""
    if sha256 is not None:
        if not _SHA256.fullmatch(sha256):
            raise InvalidRequest(f"X-Content-Sha256 {sha256!r}: write 64 hexadecimal digits")
        return "sha256:" + sha256.lower()
    match = _DIGEST_HEADER.fullmatch(digest) if digest else None
    if match is None:
        return None
    try:
        return "sha256:" + base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        raise InvalidRequest(f"Digest {digest!r}: write sha-256= and 44 characters of base64") from None


def _entry(
    hub: Hub, caller: Caller, repo_id: str, revision: str | None, path: str
) -> tuple[Repository, str, Entry, bool]:
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        require_content(session, caller, repo)
        commit = refs.resolve(session, repo, revision)
        entry = trees.entry(session, repo, commit, path)
        is_absent = mirror_files.is_absent(session, repo, entry)
    if entry.is_folder:
        raise EntryNotFound(repo_id, path, commit)
    return repo, commit, entry, is_absent


def _archive(hub: Hub, caller: Caller, repo_id: str, revision: str | None) -> archive.Archive:
    with hub.db.read() as session:
        return archive.of_revision(session, caller, repo_id, revision)
