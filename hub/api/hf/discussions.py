"""Discussions and pull requests. Source: huggingface_hub/hf_api.py get_repo_discussions and the calls after it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.hf.addressing import RepoId, find, read, write
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.context import Hub
from adapterhub.hub.services import discussions, markdown, pr_diff
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.discussions import PAGE, Details, Shown, Told, Wanted

router = APIRouter(prefix="/api/models/{namespace}/{name}/discussions", route_class=RawRoute)


class NewDiscussion(BaseModel):
    """A discussion, or a pull request without commits yet."""

    title: str
    description: str = ""
    pullRequest: bool = False  # noqa: N815  the client's spelling


class NewComment(BaseModel):
    comment: str


class NewText(BaseModel):
    content: str


class NewTitle(BaseModel):
    title: str


class NewStatus(BaseModel):
    status: str
    comment: str = ""


class MergeWish(BaseModel):
    comment: str = ""


@router.get("")
async def list_discussions(
    hub: HubDep,
    caller: CallerDep,
    repo_id: RepoId,
    author: str = "",
    kind: Annotated[str, Query(alias="type")] = "all",
    status: str = "all",
    p: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> dict[str, Any]:
    """A page of discussions, newest first."""
    wanted = Wanted(author, kind, status)
    found, total = await read(
        hub, lambda session: discussions.listing(session, caller, find(session, caller, repo_id), wanted, page=p)
    )
    return {"discussions": [_shown_json(one) for one in found], "count": total, "start": p * PAGE}


@router.post("")
async def create_discussion(hub: HubDep, caller: CallerDep, repo_id: RepoId, new: NewDiscussion) -> dict[str, Any]:
    """Open a discussion, or a draft of a pull request."""

    def work(session: Session) -> int:
        repo = find(session, caller, repo_id)
        return discussions.create(
            session, caller, repo, new.title, new.description, is_pull_request=new.pullRequest
        ).num

    num = await write(hub, work)
    return {"num": num, "url": f"/{repo_id}/discussions/{num}", "pullRequest": new.pullRequest}


@router.get("/{num}")
async def discussion_details(
    hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, diff: bool = False
) -> dict[str, Any]:
    """One discussion with its events; diff: with what a pull request changes."""
    return await threads.run(_details, hub, caller, repo_id, num, diff)


@router.post("/{num}/comment")
async def comment(hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, new: NewComment) -> dict[str, Any]:
    """Say something."""
    told = await write(
        hub, lambda session: discussions.comment(session, caller, find(session, caller, repo_id), num, new.comment)
    )
    return {"newMessage": event_json(told)}


@router.post("/{num}/comment/{comment_id}/edit")
async def edit_comment(
    hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, comment_id: str, new: NewText
) -> dict[str, Any]:
    """Change what a comment of one's own says."""

    def work(session: Session) -> Told:
        return discussions.edit(session, caller, find(session, caller, repo_id), num, comment_id, new.content)

    return {"updatedComment": event_json(await write(hub, work))}


@router.post("/{num}/comment/{comment_id}/hide")
async def hide_comment(hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, comment_id: str) -> dict[str, Any]:
    """Take a comment's text away, for ever."""
    told = await write(
        hub, lambda session: discussions.hide(session, caller, find(session, caller, repo_id), num, comment_id)
    )
    return {"updatedComment": event_json(told)}


@router.post("/{num}/title")
async def rename(hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, new: NewTitle) -> dict[str, Any]:
    """Give a discussion another title."""
    told = await write(
        hub, lambda session: discussions.rename(session, caller, find(session, caller, repo_id), num, new.title)
    )
    return {"newTitle": event_json(told)}


@router.post("/{num}/status")
async def set_status(hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, new: NewStatus) -> dict[str, Any]:
    """Open or close a discussion."""

    def work(session: Session) -> Told:
        repo = find(session, caller, repo_id)
        return discussions.set_status(session, caller, repo, num, new.status, new.comment)

    return {"newStatus": event_json(await write(hub, work))}


@router.post("/{num}/merge")
async def merge(
    hub: HubDep, caller: CallerDep, repo_id: RepoId, num: int, wish: MergeWish | None = None
) -> dict[str, Any]:
    """Merge a pull request into the default branch. Raises MergeConflict."""
    await read(hub, lambda session: find(session, caller, repo_id))
    oid = await threads.run(discussions.merge, hub, caller, repo_id, num, wish.comment if wish else "")
    return {"mergeCommitId": oid}


def _details(hub: Hub, caller: Caller, repo_id: str, num: int, with_diff: bool) -> dict[str, Any]:
    with hub.db.read() as session:
        found = discussions.details(session, caller, find(session, caller, repo_id), num)
        wants_diff = with_diff and found.shown.row.is_pull_request
        changed = pr_diff.changes(session, caller, found) if wants_diff else []
    shape = _details_json(found)
    return shape | {"diff": pr_diff.text_of(hub, changed)} if wants_diff else shape


def _details_json(found: Details) -> dict[str, Any]:
    row = found.shown.row
    shape = _shown_json(found.shown) | {"events": [event_json(told) for told in found.events]}
    if row.is_pull_request:
        changes = {"base": f"refs/heads/{found.shown.repo.default_branch}", "mergeCommitId": row.merge_oid}
        shape |= {"changes": changes, "filesWithConflicts": list(found.conflicts), "headSha": found.head}
    return shape


def _shown_json(shown: Shown) -> dict[str, Any]:
    row = shown.row
    return {
        "num": row.num,
        "title": row.title,
        "status": row.status,
        "isPullRequest": row.is_pull_request,
        "author": {"name": shown.author, "type": "user"},
        "repo": {"name": shown.repo.full_name, "type": "model"},
        "createdAt": timestamp(row.created_at),
    }


def event_json(told: Told) -> dict[str, Any]:
    """The event as the client's `deserialize_event` reads it."""
    event = told.event
    data: dict[str, Any] = event.detail
    if event.kind == "comment":
        is_hidden = event.detail["hidden"]
        latest = {
            "raw": event.detail["text"],
            "html": "" if is_hidden else markdown.render(event.detail["text"]),
            "updatedAt": timestamp(event.updated_at),
            "author": {"name": told.author},
        }
        data = {
            "edited": bool(event.detail["history"]),
            "hidden": is_hidden,
            "latest": latest,
            "history": event.detail["history"],
            "numEdits": len(event.detail["history"]),
        }
    return {
        "id": event.id,
        "type": event.kind,
        "createdAt": timestamp(event.created_at),
        "author": {"name": told.author},
        "data": data,
    }
