"""What a visitor does on the page of a repository: likes it, asks for its files, answers who asks. Each leads back."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import HubDep
from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import gates, likes, repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.web import sessions
from adapterhub.hub.web.sessions import VisitorDep

router = APIRouter(include_in_schema=False)


@router.post("/{owner}/{name}/like")
async def like(request: Request, owner: str, name: str, hub: HubDep, visitor: VisitorDep) -> RedirectResponse:
    """Like the repository."""
    return await _done(request, hub, visitor, f"{owner}/{name}", likes.like)


@router.post("/{owner}/{name}/unlike")
async def unlike(request: Request, owner: str, name: str, hub: HubDep, visitor: VisitorDep) -> RedirectResponse:
    """Take the like back."""
    return await _done(request, hub, visitor, f"{owner}/{name}", likes.unlike)


@router.post("/{owner}/{name}/ask-access")
async def ask_access(request: Request, owner: str, name: str, hub: HubDep, visitor: VisitorDep) -> RedirectResponse:
    """Ask for the files of a gated repository, with whatever its form asks."""
    form = await request.form()
    fields = {field: value for field, value in form.items() if isinstance(value, str)}

    def ask(session: Session, caller: Caller, repo: Repository) -> object:
        return gates.ask(session, caller, repo, fields)

    return await _done(request, hub, visitor, f"{owner}/{name}", ask)


@router.post("/{owner}/{name}/answer-access")
async def answer_access(
    request: Request,
    owner: str,
    name: str,
    hub: HubDep,
    visitor: VisitorDep,
    request_id: Annotated[str, Form()],
    status: Annotated[Literal["accepted", "rejected"], Form()],
) -> RedirectResponse:
    """Let in, or refuse, one who asked for the files."""

    def answer(session: Session, caller: Caller, repo: Repository) -> None:
        gates.answer(session, caller, repo, status, request_id=request_id)

    return await _done(request, hub, visitor, f"{owner}/{name}", answer)


async def _done(
    request: Request, hub: Hub, visitor: Caller, repo_id: str, deed: Callable[[Session, Caller, Repository], Any]
) -> RedirectResponse:
    """The way back to the page once the deed is done. Raises Forbidden for a form of another site, and as the deed."""
    sessions.require_same_origin(request)

    def work(session: Session) -> str:
        repo = repos.find(session, visitor, repo_id)
        deed(session, visitor, repo)
        return repo.full_name

    return RedirectResponse(f"/{await threads.run(hub.db.transact, work)}", status_code=303)
