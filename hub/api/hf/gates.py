"""Requests for the files of gated repositories. Source: huggingface_hub/hf_api.py list_pending_access_requests, ..."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlmodel import Session

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import RepoId, find, read, write
from adapterhub.hub.api.hf.overviews import person_json
from adapterhub.hub.api.hf.times import timestamp
from adapterhub.hub.api.pages import PAGE, Limit, Skip, one_page
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.db.tables import AccessRequest, Account
from adapterhub.hub.services import gates

router = APIRouter(prefix="/api/models/{namespace}/{name}/user-access-request", route_class=RawRoute)

Status = Literal["pending", "accepted", "rejected"]


class Answer(BaseModel):
    """What becomes of one request, known by its user or its id."""

    status: Status
    user: str | None = None
    requestId: str | None = None  # noqa: N815  the client's spelling
    rejectionReason: str | None = None  # noqa: N815


class Grant(BaseModel):
    """A user to let in."""

    user: str


@router.get("/{status}")
async def list_requests(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    repo_id: RepoId,
    status: Status,
    skip: Skip = 0,
    limit: Limit = PAGE,
) -> list[dict[str, Any]]:
    """Who asked and was answered so, the latest first. For those who may write to the repository."""

    def work(session: Session) -> list[tuple[AccessRequest, Account]]:
        repo = find(session, caller, repo_id)
        return gates.requests(session, caller, repo, status, limit=limit + 1, skip=skip)

    shown = one_page(request, response, public_url, await read(hub, work), skip=skip, limit=limit)
    return [_request_json(asked, account, public_url) for asked, account in shown]


@router.post("/handle")
async def answer_request(hub: HubDep, caller: CallerDep, repo_id: RepoId, answer: Answer) -> dict[str, str]:
    """Accept or reject a request, or send it back to the pending ones."""

    def work(session: Session) -> None:
        gates.answer(
            session,
            caller,
            find(session, caller, repo_id),
            answer.status,
            user=answer.user,
            request_id=answer.requestId,
            reason=answer.rejectionReason or "",
        )

    await write(hub, work)
    return {"status": answer.status}


@router.post("/grant")
async def grant_access(hub: HubDep, caller: CallerDep, repo_id: RepoId, wanted: Grant) -> dict[str, str]:
    """Let a user read the files, whether they asked or not."""
    await write(hub, lambda session: gates.grant(session, caller, find(session, caller, repo_id), wanted.user))
    return {"status": "accepted"}


def _request_json(asked: AccessRequest, account: Account, public_url: str) -> dict[str, Any]:
    """The request as the client's AccessRequest reads it; the address is told only of those who asked themselves."""
    person = person_json(account, public_url)
    if asked.asked_at is not None and account.email:
        person["email"] = account.email
    shape = {
        "requestId": asked.id,
        "user": person,
        "status": asked.status,
        "timestamp": timestamp(asked.asked_at or asked.updated_at),
    }
    return {**shape, "fields": asked.fields} if asked.fields else shape
