"""Git-LFS downloads for `git lfs pull`: ask, then read from a signed link. Source: git-lfs docs/api/batch.md."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from sqlmodel import Session
from starlette.responses import JSONResponse

from adapterhub.hub.api import mirrored
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.api.downloads import file_response
from adapterhub.hub.api.errors import domain_response, status_of
from adapterhub.hub.api.hf.addressing import find, read
from adapterhub.hub.context import Hub
from adapterhub.hub.errors import EntryNotFound, GatedRepo, NotAuthenticated, RepoNotFound
from adapterhub.hub.services import lfs_downloads
from adapterhub.hub.services.access import Caller
from adapterhub.storage.errors import InvalidDigest

router = APIRouter()

LFS_JSON = "application/vnd.git-lfs+json"


async def batch(hub: Hub, caller: Caller, public_url: str, repo_id: str, wanted: Sequence[tuple[str, int]]) -> Response:
    """For each file, named by its sha256 and size, a link to read it from, or why there is none.

    Whoever sent no token is asked for one where nothing can be read, so that git-lfs looks for credentials.
    """

    def work(session: Session) -> list[dict[str, Any]]:
        repo = find(session, caller, repo_id)

        def answer(oid: str, size: int) -> dict[str, Any]:
            shape: dict[str, Any] = {"oid": oid, "size": size}
            try:
                signature, stored = lfs_downloads.link(session, hub, caller, repo, f"sha256:{oid}")
            except (EntryNotFound, InvalidDigest) as error:
                return {**shape, "error": {"code": status_of(error), "message": str(error)}}
            href = f"{public_url}/downloads/{oid}?signature={signature}"
            download = {"href": href, "expires_in": lfs_downloads.LINK_TTL_S}
            return {**shape, "size": stored, "authenticated": True, "actions": {"download": download}}

        return [answer(oid, size) for oid, size in wanted]

    try:
        objects = await read(hub, work)
    except (RepoNotFound, GatedRepo):
        if not caller.is_anonymous:
            raise
        refusal = domain_response(f"/{repo_id}.git/", NotAuthenticated("log in with your name and a token"))
        refusal.headers["WWW-Authenticate"] = refusal.headers["LFS-Authenticate"] = 'Basic realm="adapterhub"'
        return refusal
    return JSONResponse({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, media_type=LFS_JSON)


@router.api_route("/downloads/{oid}", methods=["GET", "HEAD"])
async def download(request: Request, hub: HubDep, oid: str, signature: str = Query()) -> Response:
    """The bytes of one large file, whole or a range. The signature is the only right needed. Raises InvalidToken."""
    found = await read(hub, lambda session: lfs_downloads.linked(session, hub, signature, f"sha256:{oid}"))
    if found.is_absent and request.method == "GET":
        await mirrored.fetch(hub, found.repo, found.commit, [found.entry])
    response = await file_response(request, hub, found.entry, "")
    del response.headers["X-Repo-Commit"]
    return response
