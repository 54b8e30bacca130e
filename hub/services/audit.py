"""Audit events: who did what to what. Written, and told to webhooks, in the transaction of the deed itself."""

from collections.abc import Mapping
from typing import Any

import structlog
from sqlmodel import Session

from adapterhub.hub.db.tables import AuditEvent
from adapterhub.hub.services import webhook_events
from adapterhub.hub.services.access import Caller


def record(
    session: Session,
    caller: Caller,
    action: str,
    target_id: str | None,
    target_name: str,
    *,
    before: str | None = None,
    after: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add one event to the transaction. action: "noun.verb"; detail: JSON values, never a token or file content.

    The request id is the one that the request's log lines carry, where there is one.
    """
    event = AuditEvent(
        actor_id=caller.account_id,
        token_id=caller.token_id,
        action=action,
        target_id=target_id,
        target_name=target_name,
        before=before,
        after=after,
        request_id=structlog.contextvars.get_contextvars().get("request_id"),
        detail=dict(detail or {}),
    )
    session.add(event)
    webhook_events.emit(session, event)
