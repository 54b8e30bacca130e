"""The pages of discussions and pull requests; their JSON twins are the routes of the Hugging Face dialect."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.services import discussions, markdown, pr_diff, repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.discussions import PAGE, Told, Wanted
from adapterhub.hub.web import sessions
from adapterhub.hub.web.pages import render
from adapterhub.hub.web.sessions import VisitorDep

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

Status = Literal["open", "closed", "all"]
Deed = Literal["comment", "open", "close", "merge"]


@router.get("/{owner}/{name}/discussions")
async def list_page(
    owner: str,
    name: str,
    hub: HubDep,
    visitor: VisitorDep,
    status: Status = "open",
    p: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> HTMLResponse:
    """What people discuss and propose, newest first."""
    page = await threads.run(_list, hub, visitor, f"{owner}/{name}", status, p)
    twin = f"/api/models/{page['repo_id']}/discussions?status={status}&p={p}"
    return render("discussions.html", visitor=visitor, chosen=status, p=p, page_size=PAGE, json_twin=twin, **page)


@router.post("/{owner}/{name}/discussions")
async def open_one(
    request: Request,
    owner: str,
    name: str,
    hub: HubDep,
    visitor: VisitorDep,
    title: Annotated[str, Form()],
    text: Annotated[str, Form()],
) -> RedirectResponse:
    """Open a discussion and go to it."""
    sessions.require_same_origin(request)

    def work(session: Session) -> str:
        repo = repos.find(session, visitor, f"{owner}/{name}")
        row = discussions.create(session, visitor, repo, title, text, is_pull_request=False)
        return f"/{repo.full_name}/discussions/{row.num}"

    return RedirectResponse(await threads.run(hub.db.transact, work), status_code=303)


@router.get("/{owner}/{name}/discussions/{num}")
async def discussion_page(owner: str, name: str, num: int, hub: HubDep, visitor: VisitorDep) -> HTMLResponse:
    """One discussion with all that happened in it."""
    page = await threads.run(_one, hub, visitor, f"{owner}/{name}", num)
    twin = f"/api/models/{page['repo_id']}/discussions/{num}?diff=1"
    return render("discussion.html", visitor=visitor, json_twin=twin, **page)


@router.post("/{owner}/{name}/discussions/{num}")
async def take_part(
    request: Request,
    owner: str,
    name: str,
    num: int,
    hub: HubDep,
    visitor: VisitorDep,
    deed: Annotated[Deed, Form()],
    text: Annotated[str, Form()] = "",
) -> RedirectResponse:
    """Comment, open, close or merge, and come back."""
    sessions.require_same_origin(request)
    done = await threads.run(_take_part, hub, visitor, f"{owner}/{name}", num, deed, text.strip())
    return RedirectResponse(f"/{done}/discussions/{num}", status_code=303)


def _list(hub: Hub, visitor: Caller, repo_id: str, status: Status, p: int) -> dict[str, Any]:
    with hub.db.read() as session:
        repo = repos.find(session, visitor, repo_id)
        found, total = discussions.listing(session, visitor, repo, Wanted(status=status), page=p)
    return {"repo_id": repo.full_name, "found": found, "total": total}


def _one(hub: Hub, visitor: Caller, repo_id: str, num: int) -> dict[str, Any]:
    with hub.db.read() as session:
        repo = repos.find(session, visitor, repo_id)
        found = discussions.details(session, visitor, repo, num)
        changed = pr_diff.changes(session, visitor, found) if found.shown.row.is_pull_request else []
    diff = pr_diff.text_of(hub, changed)
    events = [(told, _html(told)) for told in found.events]
    return {"repo_id": repo.full_name, "found": found, "diff": diff, "events": events}


def _html(told: Told) -> Markup | None:
    # S704: what markdown.render gives is sanitised by an allow-list
    return Markup(markdown.render(told.event.detail["text"])) if told.event.kind == "comment" else None  # noqa: S704


def _take_part(hub: Hub, visitor: Caller, repo_id: str, num: int, deed: Deed, text: str) -> str:
    if deed == "merge":
        discussions.merge(hub, visitor, repo_id, num, text)

    def work(session: Session) -> str:
        repo = repos.find(session, visitor, repo_id)
        if deed == "comment":
            discussions.comment(session, visitor, repo, num, text)
        elif deed != "merge":
            status = "open" if deed == "open" else "closed"
            discussions.set_status(session, visitor, repo, num, status, text)
        return repo.full_name

    return hub.db.transact(work)
