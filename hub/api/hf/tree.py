"""What lies in a commit: folders, chosen paths. Source: huggingface_hub/hf_api.py list_repo_tree, get_paths_info."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import RepoId, find_commit, read
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import next_link
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import Commit, Repository
from adapterhub.hub.errors import EntryNotFound, InvalidRequest
from adapterhub.hub.services import mirror_reading, shards, trees
from adapterhub.hub.services.access import require_content
from adapterhub.hub.services.folders import RepositoryFolder
from adapterhub.hub.services.last_changes import last_commits
from adapterhub.hub.services.trees import Entry
from adapterhub.merging.pickle_names import is_pickle

router = APIRouter(prefix="/api/models/{namespace}/{name}", route_class=RawRoute)

PAGE_ENTRIES = 1000
PAGE_EXPANDED = 100
"""Entries of a page when the last commit of each is asked for."""


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
    expand: bool = False,
    cursor: str = "",
    limit: int = Query(PAGE_ENTRIES, ge=1, le=PAGE_ENTRIES),
) -> list[dict[str, Any]]:
    """The entries of a folder by path, a page at a time; the Link header names the next one. Raises EntryNotFound.

    expand: with the commit that last changed each.
    """
    limit = min(limit, PAGE_EXPANDED) if expand else limit

    def work(session: Session) -> list[dict[str, Any]]:
        repo, commit = find_commit(session, caller, repo_id, revision)
        response.headers["X-Repo-Commit"] = commit
        found = trees.list_tree(session, repo, commit, path.strip("/"), recursive=recursive)
        left = [entry for entry in found if entry.path > cursor]
        if len(left) > limit:
            response.headers["Link"] = next_link(request, public_url, left[limit - 1].path)
        return _entries_json(session, repo, commit, left[:limit], expand=expand)

    return await read(hub, work)


@router.post("/paths-info/{revision}")
async def paths_info(
    request: Request, response: Response, hub: HubDep, caller: CallerDep, repo_id: RepoId, revision: str
) -> list[dict[str, Any]]:
    """The entries of those paths that exist; the others are left out. The body is a form, or JSON of the same names."""
    paths, expand = await _asked(request)

    def work(session: Session) -> list[dict[str, Any]]:
        repo, commit = find_commit(session, caller, repo_id, revision)
        response.headers["X-Repo-Commit"] = commit
        found = trees.paths_info(session, repo, commit, paths)
        shapes = _entries_json(session, repo, commit, found, expand=expand)
        return shapes if expand else [_with_copy_mark(shape) for shape in shapes]

    return await read(hub, work)


@router.get("/safetensors-metadata/{path:path}")
async def shard_headers(hub: HubDep, caller: CallerDep, repo_id: RepoId, path: str) -> Response:
    """The header of each shard that an index on the default branch names. Raises EntryNotFound, InvalidRequest."""

    def work(session: Session) -> RepositoryFolder:
        repo, commit = find_commit(session, caller, repo_id, None)
        require_content(session, caller, repo)
        if trees.entry(session, repo, commit, path).is_folder:
            raise EntryNotFound(repo_id, path, commit)
        return mirror_reading.folder(session, hub, repo, commit)

    found = await threads.run(shards.read_shard_headers, await read(hub, work), path)
    return Response(shards.as_json(found), media_type="application/json")


def _with_copy_mark(shape: dict[str, Any]) -> dict[str, Any]:
    """The shape with the `xetHash` that the client wants to see before it copies a large file to another repository.

    It is no Xet hash, and cannot be taken for one, so no client downloads by it; `copies.share` goes by the sha256.
    """
    return {**shape, "xetHash": f"sha256:{shape['lfs']['oid']}"} if "lfs" in shape else shape


def _entries_json(
    session: Session, repo: Repository, commit: str, entries: Sequence[Entry], *, expand: bool
) -> list[dict[str, Any]]:
    if not expand:
        return [entry_json(entry) for entry in entries]
    changed = last_commits(session, repo, commit, [entry.path for entry in entries])
    return [
        {**entry_json(entry), "lastCommit": _commit_json(changed[entry.path]), **_security_json(entry)}
        for entry in entries
    ]


def _security_json(entry: Entry) -> dict[str, Any]:
    """What the client's BlobSecurityInfo reads: pickles are unsafe by their names; nothing scans the others."""
    if entry.is_folder or not is_pickle(entry.path):
        return {}
    return {"securityFileStatus": {"status": "unsafe", "avScan": None, "pickleImportScan": None}}


def _commit_json(row: Commit) -> dict[str, str]:
    return {"id": row.oid, "title": row.message.partition("\n\n")[0], "date": timestamp(row.committed_at)}


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


async def _asked(request: Request) -> tuple[list[str], bool]:
    """The paths, and whether the last commit of each is wanted. Raises InvalidRequest."""
    body = await request.body()
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            parsed = json.loads(body)
            paths, expand = (parsed.get("paths"), parsed.get("expand")) if isinstance(parsed, dict) else (None, None)
        else:
            form = parse_qs(body.decode(), max_num_fields=10_000)
            paths, expand = form.get("paths", []), form.get("expand", [""])[0]
    except ValueError as error:
        raise InvalidRequest(f"paths-info: the body does not parse: {error}") from None
    if isinstance(paths, str):
        paths = [paths]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InvalidRequest("paths-info: send `paths`, a list of paths")
    return paths, str(expand).lower() == "true"
