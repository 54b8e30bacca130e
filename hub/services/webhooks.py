"""Webhooks: who wants to be told of what, and the deliveries that tell them.

A delivery that fails is tried again after growing pauses; a webhook whose deliveries fail one after another is switched
off, and says so. Deliveries are kept for a while, to be looked at and replayed.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete as delete_rows
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import (
    Account,
    Job,
    Repository,
    Webhook,
    WebhookDelivery,
    WebhookWatch,
    now,
)
from adapterhub.hub.errors import InvalidRequest, NotAuthenticated, OutboundFailed, OutboundRefused, WebhookNotFound
from adapterhub.hub.jobs.runner import Report
from adapterhub.hub.services import accounts, audit, outbound, repos, webhook_events
from adapterhub.hub.services.access import Caller, require_webhooks
from adapterhub.hub.services.names import is_storable
from adapterhub.hub.services.sealing import decrypt, encrypt

DOMAINS = ("repo", "discussion")
WATCHED_TYPES = ("user", "org", "model")

WEBHOOKS = 50
"""Most webhooks of one account."""
WATCHED = 100
"""Most things that one webhook watches."""
SECRET_CHARACTERS = 256
URL_CHARACTERS = 2000

ATTEMPTS = 6
FAILURES = 10
"""Deliveries in a row that fail for good before a webhook is switched off."""
KEPT = 200
"""Newest deliveries that are kept of each webhook."""

TIMEOUT_S = 10.0
ANSWER_BYTES = 64 << 10
SHOWN_BYTES = 1024
"""Of the answer, kept with the delivery."""

_PURPOSE = "webhook secret"


@dataclass(frozen=True)
class Wish:
    """What a webhook shall be. None: as it is, or as a fresh one is by default."""

    url: str | None = None
    watched: Sequence[Mapping[str, str]] | None = None
    domains: Sequence[str] | None = None
    secret: str | None = None


@dataclass(frozen=True)
class Shown:
    """A webhook as its owner sees it. watched: type and present name of each; secret: its first characters alone."""

    row: Webhook
    watched: tuple[tuple[str, str], ...]
    secret: str | None


def listing(session: Session, hub: Hub, caller: Caller) -> list[Shown]:
    """The caller's webhooks, oldest first. Raises NotAuthenticated, Forbidden."""
    owner = _owner(session, caller, change=False)
    rows = session.exec(select(Webhook).where(Webhook.owner_id == owner.id).order_by(col(Webhook.created_at)))
    return [_shown(session, hub, row) for row in rows.all()]


def get(session: Session, hub: Hub, caller: Caller, webhook_id: str) -> Shown:
    """One of the caller's webhooks. Raises WebhookNotFound, NotAuthenticated, Forbidden."""
    return _shown(session, hub, _mine(session, caller, webhook_id, change=False))


def create(session: Session, hub: Hub, caller: Caller, wish: Wish) -> Shown:
    """A fresh webhook of the caller. Raises InvalidRequest, AccountNotFound, RepoNotFound, Forbidden."""
    owner = _owner(session, caller, change=True)
    if len(session.exec(select(Webhook.id).where(Webhook.owner_id == owner.id)).all()) >= WEBHOOKS:
        raise InvalidRequest(f"{owner.name} has {WEBHOOKS} webhooks, the most an account may have; delete one first")
    if not wish.url or not wish.watched:
        raise InvalidRequest("a webhook needs a url to call and at least one thing to watch")
    row = Webhook(owner_id=owner.id, url=wish.url, domains=list(DOMAINS))
    session.add(row)
    session.flush()
    _apply(session, hub, caller, row, wish)
    audit.record(session, caller, "webhook.create", row.id, row.url)
    return _shown(session, hub, row)


def update(session: Session, hub: Hub, caller: Caller, webhook_id: str, wish: Wish) -> Shown:
    """The webhook, changed where the wish says something. Raises as `create`, WebhookNotFound."""
    row = _mine(session, caller, webhook_id, change=True)
    _apply(session, hub, caller, row, wish)
    audit.record(session, caller, "webhook.update", row.id, row.url)
    return _shown(session, hub, row)


def set_disabled(session: Session, hub: Hub, caller: Caller, webhook_id: str, *, disabled: bool) -> Shown:
    """The webhook, switched off or on; on again, its failures are forgotten. Raises WebhookNotFound, Forbidden."""
    row = _mine(session, caller, webhook_id, change=True)
    row.disabled, row.disabled_reason, row.failures = disabled, "by its owner" if disabled else "", 0
    session.add(row)
    audit.record(session, caller, "webhook.disable" if disabled else "webhook.enable", row.id, row.url)
    return _shown(session, hub, row)


def delete(session: Session, caller: Caller, webhook_id: str) -> None:
    """Remove a webhook with its deliveries. Raises WebhookNotFound, NotAuthenticated, Forbidden."""
    row = _mine(session, caller, webhook_id, change=True)
    for table in (WebhookWatch, WebhookDelivery):
        session.execute(delete_rows(table).where(col(table.webhook_id) == row.id))
    audit.record(session, caller, "webhook.delete", row.id, row.url)
    session.delete(row)


def deliveries(session: Session, caller: Caller, webhook_id: str, *, limit: int = 50) -> list[WebhookDelivery]:
    """The newest deliveries of a webhook. Raises WebhookNotFound, NotAuthenticated, Forbidden."""
    row = _mine(session, caller, webhook_id, change=False)
    newest = select(WebhookDelivery).where(WebhookDelivery.webhook_id == row.id)
    order = col(WebhookDelivery.created_at).desc(), col(WebhookDelivery.id)
    return list(session.exec(newest.order_by(*order).limit(max(1, min(limit, KEPT)))))


def replay(session: Session, caller: Caller, webhook_id: str, delivery_id: str) -> WebhookDelivery:
    """The same event once more, as a delivery of its own. Raises WebhookNotFound, InvalidRequest, Forbidden."""
    row = _mine(session, caller, webhook_id, change=True)
    old = session.get(WebhookDelivery, delivery_id)
    if old is None or old.webhook_id != row.id:
        raise WebhookNotFound(f"{delivery_id}: no such delivery of this webhook")
    scope, _, action = old.event.rpartition(".")
    return _queued(session, row, (scope, action), old.payload)


def ping(session: Session, caller: Caller, webhook_id: str) -> WebhookDelivery:
    """A delivery that tells nothing, to try the webhook out. Raises as `replay`."""
    row = _mine(session, caller, webhook_id, change=True)
    return _queued(session, row, ("webhook", "ping"), {"event": {"scope": "webhook", "action": "ping"}})


def run(hub: Hub, job: Job, report: Report) -> Mapping[str, Any]:
    """Send one delivery, and see to the next attempt when it fails; the job itself succeeds either way."""
    with hub.db.read() as session:
        delivery = session.get(WebhookDelivery, str(job.payload["delivery"]))
        hook = session.get(Webhook, delivery.webhook_id) if delivery else None
    if delivery is None or hook is None or delivery.state != "queued":
        return {"state": "skipped"}
    if hook.disabled:
        hub.db.transact(lambda session: _give_up(session, delivery.id))
        return {"state": "failed"}
    report.progress(0, 1, "request", hook.url)
    started = time.perf_counter()
    status, answer, error = _post(hub, hook, delivery)
    duration_ms = round((time.perf_counter() - started) * 1000)
    is_done = status is not None and 200 <= status < 300

    def keep(session: Session) -> str:
        row = session.get(WebhookDelivery, delivery.id)
        mine = session.get(Webhook, hook.id)
        if row is None or mine is None:
            return "skipped"
        row.attempts += 1
        row.status, row.answer, row.error, row.duration_ms = status, answer, error, duration_ms
        row.state = "delivered" if is_done else "failed" if row.attempts >= ATTEMPTS else "queued"
        row.sent_at = now()
        session.add(row)
        _after(session, hub, mine, row)
        return row.state

    return {"state": hub.db.transact(keep), "status": status}


def _give_up(session: Session, delivery_id: str) -> None:
    row = session.get(WebhookDelivery, delivery_id)
    if row is not None:
        row.state, row.error = "failed", "the webhook was switched off before this was sent"
        session.add(row)


def _after(session: Session, hub: Hub, hook: Webhook, delivery: WebhookDelivery) -> None:
    """Count the webhook's failures, queue the next attempt, and forget old deliveries."""
    if delivery.state == "queued":
        pause = timedelta(seconds=hub.settings.webhook_retry_s * 4 ** (delivery.attempts - 1))
        again = {"delivery": delivery.id}
        key = f"{delivery.id}#{delivery.attempts}"
        session.add(
            Job(kind=webhook_events.KIND, key=key, owner_id=hook.owner_id, payload=again, not_before=now() + pause)
        )
        return
    hook.failures = 0 if delivery.state == "delivered" else hook.failures + 1
    if hook.failures >= FAILURES:
        hook.disabled = True
        hook.disabled_reason = f"its last {hook.failures} deliveries failed, the last one with: {delivery.error}"
    session.add(hook)
    mine = select(WebhookDelivery.id).where(WebhookDelivery.webhook_id == hook.id)
    old = mine.order_by(col(WebhookDelivery.created_at).desc()).offset(KEPT).limit(KEPT)
    session.execute(delete_rows(WebhookDelivery).where(col(WebhookDelivery.id).in_(session.exec(old).all())))


def _post(hub: Hub, hook: Webhook, delivery: WebhookDelivery) -> tuple[int | None, str, str]:
    """Status, the answer's first bytes and what went wrong, of one attempt."""
    body = json.dumps(_with_addresses(hub, delivery.payload), separators=(",", ":")).encode()
    headers = {"Content-Type": "application/json", "X-Webhook-Delivery": delivery.id}
    try:
        if hook.secret_sealed:
            secret = decrypt(hub.secret, _PURPOSE, hook.secret_sealed)
            headers |= {"X-Webhook-Secret": secret, "X-Webhook-Signature": signature(secret, int(time.time()), body)}
        with outbound.request(
            hub.settings,
            "POST",
            hook.url,
            headers=headers,
            content=body,
            limit_bytes=ANSWER_BYTES,
            deadline_s=TIMEOUT_S,
            redirects=0,
        ) as response:
            answer = response.read()[:SHOWN_BYTES].decode("utf-8", "replace").replace("\0", "")
            error = "" if 200 <= response.status < 300 else f"answered {response.status}"
            return response.status, answer, error
    except (OutboundFailed, OutboundRefused) as error:
        return None, "", str(error)


def signature(secret: str, at: int, body: bytes) -> str:
    """The X-Webhook-Signature of a body sent at that time, in Unix seconds: "t=<at>,v1=<HMAC-SHA256 of "at.body">"."""
    mac = hmac.digest(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hex()}"


def _with_addresses(hub: Hub, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    if "repo" not in payload:
        return payload
    here = (hub.settings.public_url or f"http://{hub.settings.host}:{hub.settings.port}").rstrip("/")
    name = payload["repo"]["name"]
    url = {"web": f"{here}/{name}", "api": f"{here}/api/models/{name}"}
    return {**payload, "repo": {**payload["repo"], "url": url}}


def _queued(session: Session, row: Webhook, told: tuple[str, str], payload: Mapping[str, Any]) -> WebhookDelivery:
    if row.disabled:
        raise InvalidRequest(f"webhook {row.id} is switched off ({row.disabled_reason}); enable it first")
    delivery = webhook_events.queue(session, row, told, payload)
    if delivery is None:
        raise InvalidRequest(f"webhook {row.id} had {webhook_events.A_DAY} deliveries in a day, the most it may have")
    return delivery


def _owner(session: Session, caller: Caller, *, change: bool) -> Account:
    owner = session.get(Account, caller.account_id) if caller.account_id else None
    if owner is None:
        raise NotAuthenticated("webhooks belong to an account; log in, or send Authorization: Bearer <token>")
    require_webhooks(session, caller, owner, change=change)
    return owner


def _mine(session: Session, caller: Caller, webhook_id: str, *, change: bool) -> Webhook:
    owner = _owner(session, caller, change=change)
    row = session.get(Webhook, webhook_id) if is_storable(webhook_id) else None
    if row is None or row.owner_id != owner.id:
        raise WebhookNotFound(f"{webhook_id}: no such webhook of {owner.name}")
    return row


def _apply(session: Session, hub: Hub, caller: Caller, row: Webhook, wish: Wish) -> None:
    if wish.url is not None:
        row.url = _checked_url(wish.url)
    if wish.domains is not None:
        unknown = set(wish.domains) - set(DOMAINS)
        if unknown or not wish.domains:
            raise InvalidRequest(f"domains {list(wish.domains)}: some of {', '.join(DOMAINS)}")
        row.domains = sorted(set(wish.domains))
    if wish.secret is not None:
        row.secret_sealed = encrypt(hub.secret, _PURPOSE, _checked_secret(wish.secret)) if wish.secret else None
    if wish.watched:
        _watch(session, caller, row, wish.watched)
    row.updated_at = now()
    session.add(row)


def _watch(session: Session, caller: Caller, row: Webhook, watched: Sequence[Mapping[str, str]]) -> None:
    """Watch these things in place of the present ones; each must be there and readable for the caller."""
    if len(watched) > WATCHED:
        raise InvalidRequest(f"{len(watched)} things to watch; a webhook watches at most {WATCHED}")
    wanted: dict[str, str] = {}
    for item in watched:
        kind, name = item.get("type", ""), item.get("name", "")
        if kind not in WATCHED_TYPES:
            raise InvalidRequest(f"{kind!r} cannot be watched here, only {', '.join(WATCHED_TYPES)}")
        found = repos.find(session, caller, name) if kind == "model" else accounts.find(session, name)
        wanted[found.id] = "model" if kind == "model" else "user" if _is_user(found) else "org"
    session.execute(delete_rows(WebhookWatch).where(col(WebhookWatch.webhook_id) == row.id))
    session.add_all(WebhookWatch(webhook_id=row.id, target_id=one, target_type=kind) for one, kind in wanted.items())
    session.flush()


def _is_user(found: Repository | Account) -> bool:
    return isinstance(found, Account) and found.kind == "user"


def _shown(session: Session, hub: Hub, row: Webhook) -> Shown:
    watched = []
    for one in session.exec(select(WebhookWatch).where(WebhookWatch.webhook_id == row.id)).all():
        if one.target_type == "model":
            watched.append(("model", session.get_one(Repository, one.target_id).full_name))
        else:
            watched.append((one.target_type, session.get_one(Account, one.target_id).name))
    secret = decrypt(hub.secret, _PURPOSE, row.secret_sealed) if row.secret_sealed else None
    return Shown(row, tuple(sorted(watched)), secret and secret[: min(4, len(secret) // 3)] + "…")


def _checked_url(url: str) -> str:
    if len(url) > URL_CHARACTERS or not is_storable(url):
        raise InvalidRequest(f"the url of a webhook has at most {URL_CHARACTERS} characters")
    outbound.check(url)
    return url


def _checked_secret(secret: str) -> str:
    if len(secret) > SECRET_CHARACTERS or not secret.isascii() or not secret.isprintable():
        raise InvalidRequest(f"a webhook's secret is at most {SECRET_CHARACTERS} printable ASCII characters")
    return secret
