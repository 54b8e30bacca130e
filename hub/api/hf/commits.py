"""Preupload, commit and history. Source: huggingface_hub/_commit_api.py; the body of a commit is one object a line."""

import base64
import binascii
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.bodies import spooled
from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import RepoId, find, find_commit, read
from adapterhub.hub.api.hf.ndjson import Header, read_commit
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import next_link
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import Commit
from adapterhub.hub.errors import Forbidden, InvalidRequest
from adapterhub.hub.services import commits, discussions, refs, revisions, squash, upload_modes
from adapterhub.hub.services.access import Caller, require_discussion, require_upload
from adapterhub.hub.services.commits import Place
from adapterhub.hub.services.discussions import Proposal
from adapterhub.hub.services.names import check_path
from adapterhub.hub.services.upload_modes import Mode, Wanted
from adapterhub.hub.services.wiring import SPOOL_FOLDER

router = APIRouter(prefix="/api/models/{namespace}/{name}", route_class=RawRoute)

PREUPLOAD_FILES = 1000
GIT_IGNORE_CHARACTERS = 256 * 1024
HISTORY_PAGE = 50


class UploadFile(BaseModel):
    """A file that is about to be committed. sample: its first 512 bytes in base64."""

    path: str
    size: int = Field(ge=0)
    sample: str = ""


class Preupload(BaseModel):
    """The files that are about to be committed. gitIgnore: in place of the repository's own .gitignore."""

    files: list[UploadFile] = Field(max_length=PREUPLOAD_FILES)
    gitIgnore: str | None = Field(default=None, max_length=GIT_IGNORE_CHARACTERS)  # noqa: N815  the client's spelling


@router.post("/preupload/{revision}")
async def preupload(
    hub: HubDep, caller: CallerDep, repo_id: RepoId, revision: str, wanted: Preupload, create_pr: bool = False
) -> dict[str, Any]:
    """How each file should travel: "regular" inside the commit, "lfs" beforehand through Xet or LFS; or not at all.

    Rights and paths are checked here already: the upload itself would fail in words that the client does not show.
    """
    for file in wanted.files:
        check_path(file.path)
    files = [Wanted(file.path, file.size, _sample(file.sample)) for file in wanted.files]

    def work(session: Session) -> list[Mode]:
        repo = find(session, caller, repo_id)
        if create_pr:
            require_discussion(session, caller, repo)
            head = refs.branch_head(session, repo, repo.default_branch)
        else:
            place = _place(revision)
            place.require(session, caller, repo)
            head = place.head(session, repo)
        return upload_modes.modes(session, hub, repo, head, files, wanted.gitIgnore)

    return {"files": [_mode_json(mode) for mode in await read(hub, work)]}


def _sample(written: str) -> bytes:
    """The bytes of a sample, those of a file that is no text where it is not base64."""
    try:
        return base64.b64decode(written, validate=True)
    except binascii.Error:
        return b"\0"


def _mode_json(mode: Mode) -> dict[str, Any]:
    travels = "lfs" if mode.is_large else "regular"
    return {"path": mode.path, "uploadMode": travels, "shouldIgnore": mode.is_ignored, "oid": mode.known_oid}


@router.post("/commit/{revision}")
async def commit(
    request: Request,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    repo_id: RepoId,
    revision: str,
    create_pr: bool = False,
) -> dict[str, Any]:
    """The commit made of the body's operations. Raises what `commits.commit` raises, and TooLarge.

    The body is spooled to disk and read line by line, so one line is in memory at a time.
    """
    await read(hub, lambda session: require_upload(session, caller, find(session, caller, repo_id)))
    async with spooled(request, hub.settings.data / SPOOL_FOLDER, hub.settings.commit_max_bytes) as body:
        header, operations = await threads.run(read_commit, body, hub.settings.regular_max_bytes)
        proposal = await read(hub, lambda session: _proposal(session, caller, repo_id, header)) if create_pr else None
        result = await threads.run(
            commits.commit,
            hub,
            caller,
            repo_id,
            proposal.place if proposal else _place(revision),
            operations,
            header.summary,
            header.description,
            None if proposal else header.parentCommit,
        )
    shape = {
        "success": True,
        "commitOid": result.oid,
        "commitUrl": f"{public_url}/{result.repo_id}/commit/{result.oid}",
        "hookOutput": "",
    }
    if proposal is None:
        return shape
    if not result.is_new:
        raise InvalidRequest(f"{repo_id}: these files are so already; there is nothing to propose")
    return shape | {"pullRequestUrl": f"{public_url}/{result.repo_id}/discussions/{proposal.num}"}


def _place(revision: str) -> Place:
    """Onto a branch, or onto the pull request that the revision names."""
    number = discussions.number_of(revision)
    return commits.on_branch(revision) if number is None else discussions.place_of(number)


def _proposal(session: Session, caller: Caller, repo_id: str, header: Header) -> Proposal:
    repo = find(session, caller, repo_id)
    at = refs.resolve(session, repo, header.parentCommit) if header.parentCommit else ""
    return Proposal(caller, repo.default_branch, header.summary, header.description, at=at)


@router.get("/commits/{revision}")
async def history(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    repo_id: RepoId,
    revision: str,
    cursor: int = Query(0, ge=0),
    limit: int = Query(HISTORY_PAGE, ge=1, le=1000),
) -> list[dict[str, Any]]:
    """The commits before and at `revision`, newest first, a page at a time. Raises Forbidden to a converter."""
    _refuse_conversion(request)

    def work(session: Session) -> list[Commit]:
        repo, oid = find_commit(session, caller, repo_id, revision)
        return revisions.history(session, repo, oid, limit=limit + 1, skip=cursor)

    found = await read(hub, work)
    if len(found) > limit:
        response.headers["Link"] = next_link(request, public_url, str(cursor + limit))
    is_formatted = "formatted" in request.query_params.getlist("expand[]") + request.query_params.getlist("expand")
    return [_commit_json(row, is_formatted=is_formatted) for row in found[:limit]]


def _commit_json(row: Commit, *, is_formatted: bool) -> dict[str, Any]:
    title, _, message = row.message.partition("\n\n")
    shape: dict[str, Any] = {
        "id": row.oid,
        "title": title,
        "message": message,
        "date": timestamp(row.committed_at),
        "authors": [{"user": row.author_name}],
    }
    return {**shape, "formatted": {"title": title, "message": message}} if is_formatted else shape


class SquashWish(BaseModel):
    """What the one commit says."""

    message: str = Field(default="Super-squash", max_length=10_000)


@router.post("/super-squash/{branch}")
async def super_squash(
    hub: HubDep, caller: CallerDep, repo_id: RepoId, branch: str, wish: SquashWish
) -> dict[str, str]:
    """Make the history of a branch one commit."""
    await read(hub, lambda session: find(session, caller, repo_id))
    return {"commitOid": await threads.run(squash.squash, hub, caller, repo_id, branch, wish.message)}


def _refuse_conversion(request: Request) -> None:
    """Stops transformers before it has weights converted elsewhere: it alone asks without naming huggingface_hub.

    It would go on to send the repository's name and the caller's token to a converter on a host that is not this hub
    and cannot read from it. Source: transformers/safetensors_conversion.py.
    """
    agent = request.headers.get("user-agent", "")
    if agent.startswith("transformers/") and "hf_hub/" not in agent:
        raise Forbidden(
            "the weights are not in safetensors, and transformers would have another host convert them, with your"
            " token; save them with save_pretrained and push them, or load them with use_safetensors=False"
        )
