"""What webhooks are told: each recorded deed that somebody watches becomes a delivery, in the deed's own transaction.

So no event is lost, and none is told of a deed that was rolled back. The payload is Hugging Face's, version 3.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import func
from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import (
    Account,
    AuditEvent,
    Job,
    Ref,
    Repository,
    Webhook,
    WebhookDelivery,
    WebhookWatch,
    now,
)
from adapterhub.hub.services.access import Caller, may_know

KIND = "webhook"
"""The job that sends one delivery."""

A_DAY = 1000
"""Deliveries that one webhook gets in 24 hours; further events of that time are not told."""

EVENTS: Mapping[str, tuple[str, str]] = {
    "repo.create": ("repo", "create"),
    "repo.duplicate": ("repo", "create"),
    "repo.delete": ("repo", "delete"),
    "repo.move": ("repo", "move"),
    "repo.settings": ("repo.config", "update"),
    "repo.commit": ("repo.content", "update"),
    "ref.create": ("repo.content", "update"),
    "ref.delete": ("repo.content", "update"),
    "discussion.create": ("discussion", "create"),
    "discussion.update": ("discussion", "update"),
    "discussion.comment": ("discussion.comment", "create"),
}
"""Scope and action of each audited deed that is told; the first word of a scope is the domain a webhook asks for."""

_log = structlog.get_logger("adapterhub.webhooks")


def emit(session: Session, event: AuditEvent) -> None:
    """Queue a delivery for each webhook that watches what `event` changed and whose owner may know of it."""
    told = EVENTS.get(event.action)
    repo = session.get(Repository, event.target_id) if told and event.target_id else None
    if told is None or repo is None:
        return
    watching = select(WebhookWatch.webhook_id).where(col(WebhookWatch.target_id).in_((repo.id, repo.owner_id)))
    here = col(Webhook.id).in_(watching), col(Webhook.disabled).is_(False)
    for hook, owner in session.exec(select(Webhook, Account).join(Account).where(*here)).all():
        domain = told[0].partition(".")[0]
        caller = Caller(owner.id, owner.name)
        if domain in hook.domains and owner.disabled_at is None and may_know(session, caller, repo):
            queue(session, hook, told, payload_of(session, repo, event, told))


def queue(session: Session, hook: Webhook, told: tuple[str, str], payload: Mapping[str, Any]) -> WebhookDelivery | None:
    """A delivery of that payload and the job that sends it; None when the webhook has had its share of the day."""
    since = now() - timedelta(days=1)
    recent = select(func.count()).where(WebhookDelivery.webhook_id == hook.id, col(WebhookDelivery.created_at) > since)
    if session.exec(recent).one() >= A_DAY:
        _log.warning("webhook.too_many", webhook=hook.id, a_day=A_DAY)
        return None
    body = {**payload, "webhook": {"id": hook.id, "version": 3}}
    delivery = WebhookDelivery(webhook_id=hook.id, event=".".join(told), payload=body)
    session.add(delivery)
    session.add(Job(kind=KIND, key=delivery.id, owner_id=hook.owner_id, payload={"delivery": delivery.id}))
    return delivery


def payload_of(session: Session, repo: Repository, event: AuditEvent, told: tuple[str, str]) -> dict[str, Any]:
    """What a deed on a repository looks like to a webhook; addresses are filled in when it is sent."""
    scope, action = told
    shape: dict[str, Any] = {
        "event": {"scope": scope, "action": action},
        "repo": {
            "type": "model",
            "name": repo.full_name,
            "id": repo.id,
            "private": repo.is_private,
            "owner": {"id": repo.owner_id},
        },
    }
    head = session.get(Ref, (repo.id, f"refs/heads/{repo.default_branch}"))
    if head is not None:
        shape["repo"]["headSha"] = head.target_oid
    if scope == "repo.content":
        ref = event.detail["ref"]
        shape["updatedRefs"] = [{"ref": ref, "oldSha": event.before, "newSha": event.after}]
        if ref == f"refs/heads/{repo.default_branch}" and event.after:
            shape["repo"]["headSha"] = event.after
    if scope.startswith("discussion"):
        shape["discussion"] = dict(event.detail)
    if action == "move":
        shape["movedTo"] = {"name": repo.full_name, "owner": {"id": repo.owner_id}}
        shape["repo"]["name"] = event.before
    return shape
