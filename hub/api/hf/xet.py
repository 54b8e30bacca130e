"""Xet uploads: a token, xorbs, shards; everything else of Xet's API is answered with 404, which clients take well.

Source: huggingface/xet-core openapi/cas.openapi.yaml and what hf_xet 1.8.0 sends. Downloads never use Xet: no reply
names a Xet hash, so clients fetch files over plain HTTP.
"""

import asyncio
import json
import mmap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import StreamingResponse

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api import threads
from adapterhub.hub.api.bodies import on_disk, pour
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.errors import status_of
from adapterhub.hub.api.hf.addressing import RepoId, find, write
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import InvalidRequest, NotAuthenticated
from adapterhub.hub.services import xet
from adapterhub.hub.services.wiring import SPOOL_FOLDER
from adapterhub.storage.xet.shard import MAX_SHARD_BYTES
from adapterhub.storage.xet.xorb import MAX_WIRE_BYTES

router = APIRouter(route_class=RawRoute)
protocol = APIRouter(route_class=RawRoute, include_in_schema=False)
"""What lies below /xet/, asked before all other routes: an upload asks dozens of times for what is not here."""

T = TypeVar("T")

XORBS_AT_ONCE = 8
"""Xorbs that arrive at once, each of them checked on its way to disk; further senders wait with their bytes."""
SHARDS_AT_ONCE = 1
"""Shards that are rebuilt at once: one already fills a core."""
HEARTBEAT_S = 15.0
"""Between two lines of a shard's answer; clients give up after 300 s without one, proxies after 60 s."""

_log = structlog.get_logger("adapterhub.xet")


@router.get("/api/models/{namespace}/{name}/xet-write-token/{revision}")
async def write_token(
    response: Response, hub: HubDep, caller: CallerDep, public_url: PublicUrl, repo_id: RepoId, revision: str
) -> dict[str, Any]:
    """Where to send xorbs and shards, and the token that allows it; older clients read the headers, newer the body."""
    grant = await write(hub, lambda session: xet.grant_upload(session, hub, caller, find(session, caller, repo_id)))
    cas_url = f"{public_url}/xet/{grant.scope}"
    response.headers["X-Xet-Cas-Url"] = cas_url
    response.headers["X-Xet-Access-Token"] = grant.token
    response.headers["X-Xet-Token-Expiration"] = str(grant.expires_at)
    return {"casUrl": cas_url, "accessToken": grant.token, "exp": grant.expires_at}


def _scope(request: Request, hub: HubDep, scope: str) -> xet.Scope:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer":
        raise NotAuthenticated("send Authorization: Bearer and the Xet token")
    return xet.open_scope(hub, scope, token)


ScopeDep = Annotated[xet.Scope, Depends(_scope)]


@protocol.post("/xet/{scope}/v1/xorbs/{prefix}/{xorb_hash}")
async def put_xorb(request: Request, hub: HubDep, scope: ScopeDep, xorb_hash: str) -> dict[str, bool]:
    """Take one xorb: checked to the last chunk, durable when this answers. Raises InvalidXet, TooLarge."""
    async with threads.turns("xorbs", XORBS_AT_ONCE):
        writer = await threads.run(xet.XorbWriter, hub, scope, xorb_hash)
        try:
            if await pour(request, writer.write, MAX_WIRE_BYTES) == 0:
                raise InvalidRequest("the body is empty")
            return {"was_inserted": await threads.run(writer.finish)}
        finally:
            await threads.run(writer.abort)


@protocol.post("/xet/{scope}/v1/shards")
async def put_shard(request: Request, hub: HubDep, scope: ScopeDep) -> dict[str, int]:
    """Rebuild the files of one shard; answers when they are durable. Raises InvalidXet, DigestMismatch, TooLarge."""
    with await on_disk(request, _spool(hub), MAX_SHARD_BYTES) as file:
        await _rebuild(hub, scope, file)
    return {"result": 1}


@protocol.post("/xet/{scope}/v2/shards")
async def put_shard_with_progress(request: Request, hub: HubDep, scope: ScopeDep) -> Response:
    """As `put_shard`, answered by one JSON object a line, the last of which is the result or the error.

    Only here does the client show the server's own words about what went wrong.
    """
    file = await on_disk(request, _spool(hub), MAX_SHARD_BYTES)
    work = asyncio.create_task(_rebuild(hub, scope, file))
    work.add_done_callback(lambda _: file.close())
    return StreamingResponse(_told(work), media_type="application/x-ndjson")


async def _told(work: asyncio.Task[None]) -> AsyncIterator[str]:
    """The lines that tell how `work` goes. It goes on when nobody listens: what it makes is named by its content."""
    while not work.done():
        yield _line(type="committing", stage="uploading")
        await asyncio.wait([work], timeout=HEARTBEAT_S)
    error = work.exception()
    if error is None:
        yield _line(type="result", result=1)
    elif isinstance(error, AdapterHubError):
        yield _line(type="error", message=str(error), retryable=status_of(error) >= 500)
    else:
        _log.error("shard_failed", exc_info=error)
        yield _line(type="error", message="an unexpected error; the server's log tells more", retryable=True)


def _line(**event: Any) -> str:
    return json.dumps(event) + "\n"


async def _rebuild(hub: Hub, scope: xet.Scope, file: IO[bytes]) -> None:
    def work(content: memoryview) -> None:
        xet.put_shard(hub, scope, content)

    async with threads.turns("shards", SHARDS_AT_ONCE):
        await threads.run(_with_content, file, work)


def _with_content(file: IO[bytes], work: Callable[[memoryview], T]) -> T:
    """What `work` makes of the file's bytes, mapped and not read into memory. Raises InvalidRequest for none."""
    if file.seek(0, 2) == 0:
        raise InvalidRequest("the body is empty")
    # unmapped when nothing refers to it any more; closing it would fail while an error's frames still do
    return work(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _spool(hub: Hub) -> Path:
    return hub.settings.data / SPOOL_FOLDER


@protocol.api_route("/xet/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
async def not_here(path: str) -> Response:
    """404: chunks that others may have uploaded, grants, reconstructions."""
    return Response(status_code=404)
