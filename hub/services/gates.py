"""Gated repositories: who asked for their files, and what the owner answered."""

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import AccessRequest, Account, Repository, now
from adapterhub.hub.errors import AccessRequestNotFound, InvalidRequest, Refused
from adapterhub.hub.services import accounts, audit
from adapterhub.hub.services.access import (
    Caller,
    access_request,
    may_read_content,
    require_read,
    require_requests,
    require_writing_token,
)

STATUSES = ("pending", "accepted", "rejected")
MAX_FIELDS = 30
FIELD_CHARACTERS = 2000
REASON_CHARACTERS = 500


def ask(session: Session, caller: Caller, repo: Repository, fields: Mapping[str, str] | None = None) -> AccessRequest:
    """The caller's request for the files of `repo`: accepted at once where its gate is automatic, else pending.

    Asking again changes nothing. fields: what the asker filled in, by name. Raises RepoNotFound, NotAuthenticated,
    Forbidden; InvalidRequest where there is nothing to ask for, or the fields are too many or too long.
    """
    require_read(session, caller, repo)
    require_writing_token(caller)
    present = access_request(session, caller, repo)
    if present is not None:
        return present
    _require_gate(repo)
    if may_read_content(session, caller, repo):
        raise InvalidRequest(f"{repo.full_name}: you may read its files already")
    told = dict(fields or {})
    if len(told) > MAX_FIELDS or any(len(text) > FIELD_CHARACTERS for pair in told.items() for text in pair):
        raise InvalidRequest(f"a request has at most {MAX_FIELDS} fields of {FIELD_CHARACTERS} characters")
    status = "accepted" if repo.gated == "auto" else "pending"
    asked = AccessRequest(
        repository_id=repo.id, account_id=str(caller.account_id), status=status, fields=told, asked_at=now()
    )
    session.add(asked)
    audit.record(session, caller, "access.ask", repo.id, repo.full_name, after=status)
    session.flush()
    return asked


def requests(
    session: Session, caller: Caller, repo: Repository, status: str, *, limit: int, skip: int = 0
) -> list[tuple[AccessRequest, Account]]:
    """The requests of that status with who asked, the latest first.

    Raises RepoNotFound, NotAuthenticated, Forbidden; InvalidRequest where the repository is not gated.
    """
    require_requests(session, caller, repo, answer=False)
    _require_gate(repo)
    rows = (
        select(AccessRequest, Account)
        .join(Account, col(Account.id) == col(AccessRequest.account_id))
        .where(AccessRequest.repository_id == repo.id, AccessRequest.status == status)
        .order_by(col(AccessRequest.updated_at).desc(), col(AccessRequest.id))
    )
    return list(session.exec(rows.offset(skip).limit(limit)))


def waiting(session: Session, caller: Caller, repo: Repository, limit: int) -> list[tuple[AccessRequest, Account]]:
    """Up to `limit` pending requests, for those who may answer them; none for others, and where there is no gate."""
    try:
        require_requests(session, caller, repo, answer=True)
        return requests(session, caller, repo, "pending", limit=limit)
    except (Refused, InvalidRequest):
        return []


def answer(
    session: Session,
    caller: Caller,
    repo: Repository,
    status: str,
    *,
    user: str | None = None,
    request_id: str | None = None,
    reason: str = "",
) -> None:
    """Accept or reject a request, of that user or id, or send it back to the pending ones.

    Raises as `requests`; AccountNotFound; AccessRequestNotFound where there is none, or it has that status already.
    """
    require_requests(session, caller, repo, answer=True)
    _require_gate(repo)
    if len(reason) > REASON_CHARACTERS or (reason and status != "rejected"):
        raise InvalidRequest(f"a rejection, and nothing else, has a reason of at most {REASON_CHARACTERS} characters")
    if (user is None) == (request_id is None):
        raise InvalidRequest("name either the user or the id of the request")
    account = accounts.find_user(session, user) if user is not None else None
    who = AccessRequest.account_id == account.id if account else AccessRequest.id == request_id
    found = session.exec(select(AccessRequest).where(AccessRequest.repository_id == repo.id, who)).first()
    if found is None or found.status == status:
        told = "has no request" if found is None else f"is {status} already"
        raise AccessRequestNotFound(f"{repo.full_name}: {user or request_id} {told}")
    before, found.status, found.reason, found.updated_at = found.status, status, reason, now()
    session.add(found)
    _record(session, caller, repo, found, before)


def grant(session: Session, caller: Caller, repo: Repository, user: str) -> None:
    """Let a user read the files, whether they asked or not.

    Raises as `requests`; AccountNotFound; InvalidRequest where the user has access already.
    """
    require_requests(session, caller, repo, answer=True)
    _require_gate(repo)
    account = accounts.find_user(session, user)
    here = AccessRequest.repository_id == repo.id, AccessRequest.account_id == account.id
    found = session.exec(select(AccessRequest).where(*here)).first()
    if may_read_content(session, Caller(account.id, account.name), repo):
        raise InvalidRequest(f"{repo.full_name}: {account.name} has access already")
    before = found.status if found else None
    found = found or AccessRequest(repository_id=repo.id, account_id=account.id, status="accepted")
    found.status, found.reason, found.updated_at = "accepted", "", now()
    session.add(found)
    _record(session, caller, repo, found, before)


def state(session: Session, caller: Caller, repo: Repository) -> str:
    """Where the caller stands: "open" when they may read the files, else "ask", "pending" or "rejected"."""
    if may_read_content(session, caller, repo):
        return "open"
    request = access_request(session, caller, repo)
    return request.status if request is not None and request.status != "accepted" else "ask"


def form(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the card asks of those who want the files: {"prompt", "fields": [{"name", "kind", "options"}]}.

    kind: text, checkbox or select. Source: huggingface.co/docs/hub/models-gated, extra_gated_prompt and its like.
    """
    prompt, fields = card.get("extra_gated_prompt"), card.get("extra_gated_fields")
    shown = [_field(name, asked) for name, asked in fields.items()] if isinstance(fields, dict) else []
    return {"prompt": prompt if isinstance(prompt, str) else "", "fields": shown[:MAX_FIELDS]}


def _field(name: object, asked: object) -> dict[str, Any]:
    options = asked.get("options") if isinstance(asked, dict) else None
    if isinstance(options, list):
        labels = (one.get("label", one.get("value")) if isinstance(one, dict) else one for one in options)
        return {"name": str(name), "kind": "select", "options": [str(label) for label in labels]}
    return {"name": str(name), "kind": "checkbox" if asked == "checkbox" else "text", "options": []}


def _require_gate(repo: Repository) -> None:
    if not repo.gated:
        raise InvalidRequest(f"{repo.full_name}: not gated, so there is nothing to ask for or to answer")


def _record(session: Session, caller: Caller, repo: Repository, request: AccessRequest, before: str | None) -> None:
    detail = {"account": request.account_id}
    audit.record(
        session, caller, "access.answer", repo.id, repo.full_name, before=before, after=request.status, detail=detail
    )
