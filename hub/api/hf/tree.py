"""What lies in a commit: folders, chosen paths. Source: huggingface_hub/hf_api.py list_repo_tree, get_paths_info."""

import json
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from sqlmodel import Session

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import RepoId, find_commit, read
from adapterhub.hub.api.pages import next_link
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.services import trees
from adapterhub.hub.services.trees import Entry

router = APIRouter(prefix="/api/models/{namespace}/{name}", route_class=RawRoute)

PAGE_ENTRIES = 1000


@router.get("/tree/{revision}")
@router.get("/tree/{revision}/{path:path}")
async def list_tree(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    repo_id: RepoId,
    revision: str,
    path: str = "",
    recursive: bool = False,
    cursor: str = "",
    limit: int = Query(PAGE_ENTRIES, ge=1, le=PAGE_ENTRIES),
) -> list[dict[str, Any]]:
    """The entries of a folder by path, a page at a time; the Link header names the next one. Raises EntryNotFound."""

    def work(session: Session) -> list[Entry]:
        repo, commit = find_commit(session, caller, repo_id, revision)
        response.headers["X-Repo-Commit"] = commit
        return trees.list_tree(session, repo, commit, path.strip("/"), recursive=recursive)

    left = [entry for entry in await read(hub, work) if entry.path > cursor]
    if len(left) > limit:
        response.headers["Link"] = next_link(request, public_url, left[limit - 1].path)
    return [entry_json(entry) for entry in left[:limit]]


@router.post("/paths-info/{revision}")
async def paths_info(
    request: Request, response: Response, hub: HubDep, caller: CallerDep, repo_id: RepoId, revision: str
) -> list[dict[str, Any]]:
    """The entries of those paths that exist; the others are left out. The body is a form, or JSON of the same names."""
    paths = await _wanted_paths(request)

    def work(session: Session) -> list[Entry]:
        repo, commit = find_commit(session, caller, repo_id, revision)
        response.headers["X-Repo-Commit"] = commit
        return trees.paths_info(session, repo, commit, paths)

    return [_with_copy_mark(entry_json(entry)) for entry in await read(hub, work)]


def _with_copy_mark(shape: dict[str, Any]) -> dict[str, Any]:
    """The shape with the `xetHash` that the client wants to see before it copies a large file to another repository.

    It is no Xet hash, and cannot be taken for one, so no client downloads by it; `copies.share` goes by the sha256.
    """
    return {**shape, "xetHash": f"sha256:{shape['lfs']['oid']}"} if "lfs" in shape else shape


def entry_json(entry: Entry) -> dict[str, Any]:
    """`entry` as the client's RepoFile or RepoFolder reads it.

    `xetHash` is not sent in trees: the client would then fetch the file through Xet.
    """
    if entry.is_folder:
        return {"type": "directory", "oid": entry.oid, "size": 0, "path": entry.path}
    shape = {"type": "file", "oid": entry.oid, "size": entry.size_bytes, "path": entry.path}
    if not entry.is_lfs:
        return shape
    lfs = {"oid": entry.digest.removeprefix("sha256:"), "size": entry.size_bytes, "pointerSize": entry.pointer_bytes}
    return {**shape, "lfs": lfs}


async def _wanted_paths(request: Request) -> list[str]:
    body = await request.body()
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            parsed = json.loads(body)
            paths = parsed.get("paths") if isinstance(parsed, dict) else None
        else:
            paths = parse_qs(body.decode(), max_num_fields=10_000).get("paths", [])
    except ValueError as error:
        raise InvalidRequest(f"paths-info: the body does not parse: {error}") from None
    if isinstance(paths, str):
        return [paths]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InvalidRequest("paths-info: send `paths`, a list of paths")
    return paths
