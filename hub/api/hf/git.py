"""`git clone` and `git fetch` over smart HTTP; a push is refused with what to use instead.

Errors are plain text, which git shows to the user. Source: git's gitprotocol-http.
"""

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile
from typing import IO

from fastapi import APIRouter, Request, Response
from sqlmodel import Session
from starlette.responses import StreamingResponse

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.errors import RepoMoved, status_of
from adapterhub.hub.api.hf.addressing import RepoId, find, read
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import GatedRepo, InvalidRequest, NotAuthenticated, RepoNotFound, TooLarge
from adapterhub.hub.services import git_pack, mirror
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.wiring import SPOOL_FOLDER

router = APIRouter(route_class=RawRoute)

PUSH_REFUSED = (
    "this hub takes no git push; send files with `hf upload NAMESPACE/NAME FOLDER`, "
    "huggingface_hub, or `adapterhub patch push FOLDER NAMESPACE/NAME`\n"
)
REQUEST_BYTES = 16 << 20
"""Longest request of a client, unpacked: one line for each commit that it has and each ref that it wants."""

AT_ONCE = 4
"""Packs that are made at once; further clients wait their turn."""

_IN_MEMORY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_NO_CACHE = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}


@router.get("/{namespace}/{name}/info/refs")
@router.get("/{namespace}/{name}.git/info/refs")
async def info_refs(hub: HubDep, caller: CallerDep, repo_id: RepoId, service: str = "") -> Response:
    """The refs of a repository, for a client that is about to fetch."""
    if service == "git-receive-pack":
        return Response(PUSH_REFUSED, 403, media_type="text/plain")
    if service != git_pack.SERVICE.decode():
        return Response(
            "git's dumb protocol is not spoken here; use git 1.6.6 or newer\n", 403, media_type="text/plain"
        )
    written: list[bytes] = []

    def write(piece: bytes) -> int:
        written.append(piece)
        return len(piece)

    def work(session: Session) -> None:
        git_pack.advertise(session, hub, _readable(session, caller, repo_id), write)

    try:
        await read(hub, work)
    except AdapterHubError as error:
        return _refusal(caller, error)
    return Response(b"".join(written), headers=_NO_CACHE, media_type="application/x-git-upload-pack-advertisement")


@router.post("/{namespace}/{name}/git-upload-pack")
@router.post("/{namespace}/{name}.git/git-upload-pack")
async def upload_pack(request: Request, hub: HubDep, caller: CallerDep, repo_id: RepoId) -> Response:
    """The objects that a client lacks. They are gathered on disk, so that a slow client holds no thread."""
    try:
        body = _unpacked(await request.body(), request.headers.get("content-encoding", "identity"))
        async with threads.turns("git", AT_ONCE):
            pack = await threads.run(_pack, hub, caller, repo_id, body)
    except AdapterHubError as error:
        return _refusal(caller, error)
    pieces = threads.iterate(_pieces(pack))
    return StreamingResponse(pieces, headers=_NO_CACHE, media_type="application/x-git-upload-pack-result")


@router.post("/{namespace}/{name}/git-receive-pack")
@router.post("/{namespace}/{name}.git/git-receive-pack")
async def receive_pack(namespace: str, name: str) -> Response:
    """Refuses a push."""
    return Response(PUSH_REFUSED, 403, media_type="text/plain")


def _readable(session: Session, caller: Caller, repo_id: str) -> Repository:
    repo = find(session, caller, repo_id)
    require_content(session, caller, repo)
    mirror.require_own_history(session, repo)
    return repo


def _pack(hub: Hub, caller: Caller, repo_id: str, body: bytes) -> IO[bytes]:
    """A file with the answer to a client's request, standing at its start."""
    with ExitStack() as stack:
        file = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=str(hub.settings.data / SPOOL_FOLDER))  # noqa: SIM115
        stack.callback(file.close)

        def write(piece: bytes) -> int:
            if file.tell() + len(piece) > hub.settings.git_max_bytes:
                limit = hub.settings.git_max_bytes
                raise TooLarge(f"{repo_id}: a pack of more than {limit} bytes; fetch with --depth 1")
            return file.write(piece)

        with hub.db.read() as session:
            git_pack.upload(session, hub, _readable(session, caller, repo_id), body, write)
        file.seek(0)
        stack.pop_all()
    return file


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _unpacked(body: bytes, encoding: str) -> bytes:
    """The body as it was before git packed it. Raises TooLarge, InvalidRequest."""
    if encoding.lower() == "identity":
        return body
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = unpacker.decompress(body, REQUEST_BYTES)
    except zlib.error as error:
        raise InvalidRequest(f"the request's body is not gzip: {error}") from error
    if unpacker.unconsumed_tail:
        raise TooLarge(f"the request is longer than {REQUEST_BYTES} bytes")
    return content


def _refusal(caller: Caller, error: AdapterHubError) -> Response:
    """The reply that git shows. Whoever sent no token is asked for one where nothing can be read."""
    if isinstance(error, RepoMoved):
        raise error
    if caller.is_anonymous and isinstance(error, RepoNotFound | GatedRepo):
        error = NotAuthenticated("log in with your name, and a token as password")
    headers = {"X-Error-Code": type(error).__name__}
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = 'Basic realm="adapterhub"'
    return Response(f"{error}\n", status_of(error), headers, "text/plain")
