"""Who is told of what, and what becomes of a delivery; receivers are real servers on this machine."""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Job, Webhook, WebhookDelivery
from adapterhub.hub.errors import (
    AccountNotFound,
    Forbidden,
    InvalidRequest,
    NotAuthenticated,
    OutboundRefused,
    RepoNotFound,
    SealBroken,
    WebhookNotFound,
)
from adapterhub.hub.jobs.inline import InlineExecutor
from adapterhub.hub.services import accounts, refs, repos, webhook_events, webhooks
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.sealing import decrypt, encrypt
from adapterhub.hub.services.webhooks import Shown, Wish
from adapterhub.hub.worker import handlers_of
from tests.hub.services.samples import MakeUser
from tests.hub.services.test_outbound import reply, serving

SECRET = "a secret of ours"


@dataclass
class Receiver:
    """What came, and what is answered: the first of `statuses`, then the next, and the last for ever."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def events(self) -> list[Any]:
        return [json.loads(body) for _, body in self.seen]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server that takes deliveries."""
    one = Receiver()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        one.seen.append(({name.lower(): value for name, value in handler.headers.items()}, body))
        reply(handler, one.statuses.pop(0) if len(one.statuses) > 1 else one.statuses[0], b"thanks")

    with serving(answer) as port:
        one.url = f"http://127.0.0.1:{port}/hook"
        yield one


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """A hub that may call this machine, and tries again at once."""
    hub.settings.outbound_allow, hub.settings.webhook_retry_s = "127.0.0.1", 0
    return hub


Make = Callable[..., Shown]


@pytest.fixture
def hook(hub: Hub, ann: Caller, receiver: Receiver) -> Shown:
    """A webhook of ann's that watches all that is hers."""
    return make(hub, ann, receiver.url, secret=SECRET)


def make(hub: Hub, caller: Caller, url: str, *watched: tuple[str, str], **wish: Any) -> Shown:
    items = [{"type": kind, "name": name} for kind, name in watched or [("user", "ann")]]
    return hub.db.transact(lambda session: webhooks.create(session, hub, caller, Wish(url, items, **wish)))


def drain(hub: Hub) -> None:
    InlineExecutor(hub.jobs, {webhook_events.KIND: handlers_of(hub)[webhook_events.KIND]}).drain()


def row_of(hub: Hub, hook: Shown) -> Webhook:
    with hub.db.read() as session:
        return session.get_one(Webhook, hook.row.id)


def deliveries_of(hub: Hub, caller: Caller, hook: Shown) -> list[WebhookDelivery]:
    with hub.db.read() as session:
        return webhooks.deliveries(session, caller, hook.row.id, limit=200)


def test_the_life_of_a_repository_is_told_in_order(hub: Hub, ann: Caller, hook: Shown, receiver: Receiver) -> None:
    repos.create(hub, ann, "ann/x")
    first = commit(hub, ann, "ann/x", "main", [AddRegular("a.txt", b"a")], "add").oid

    def rest(session: Session) -> None:
        repo = repos.find(session, ann, "ann/x")
        refs.create_tag(session, ann, repo, "v1", None, "")
        refs.delete_tag(session, ann, repo, "v1")
        repos.update_settings(session, ann, "ann/x", private=True)
        repos.move(session, ann, "ann/x", "ann/y")
        repos.delete(session, ann, "ann/y")

    hub.db.transact(rest)
    drain(hub)
    told = [(e["event"]["scope"], e["event"]["action"], e["repo"]["name"]) for e in receiver.events()]
    assert sorted(told) == sorted(
        [
            ("repo", "create", "ann/x"),
            ("repo.content", "update", "ann/x"),
            ("repo.content", "update", "ann/x"),
            ("repo.content", "update", "ann/x"),
            ("repo.config", "update", "ann/x"),
            ("repo", "move", "ann/x"),
            ("repo", "delete", "ann/y"),
        ]
    )
    [pushed] = [e for e in receiver.events() if e.get("updatedRefs", [{}])[0].get("ref") == "refs/heads/main"]
    assert pushed["updatedRefs"][0]["newSha"] == pushed["repo"]["headSha"] == first
    assert pushed["repo"]["url"] == {
        "web": "http://127.0.0.1:8000/ann/x",
        "api": "http://127.0.0.1:8000/api/models/ann/x",
    }
    assert pushed["webhook"] == {"id": hook.row.id, "version": 3}
    [moved] = [e for e in receiver.events() if e["event"]["action"] == "move"]
    assert moved["movedTo"]["name"] == "ann/y"


def test_a_delivery_is_signed_and_carries_the_secret(hub: Hub, ann: Caller, hook: Shown, receiver: Receiver) -> None:
    repos.create(hub, ann, "ann/x")
    drain(hub)
    [(headers, body)] = receiver.seen
    assert headers["x-webhook-secret"] == SECRET
    at, _, mac = headers["x-webhook-signature"].removeprefix("t=").partition(",v1=")
    assert mac == hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert SECRET not in (row_of(hub, hook).secret_sealed or "")
    assert hook.secret == "a se…"


def test_a_deed_that_is_rolled_back_is_not_told(hub: Hub, ann: Caller, hook: Shown, receiver: Receiver) -> None:
    repos.create(hub, ann, "ann/x")
    drain(hub)

    def fails(session: Session) -> None:
        repos.delete(session, ann, "ann/x")
        raise RuntimeError("after the deed")

    with pytest.raises(RuntimeError):
        hub.db.transact(fails)
    drain(hub)
    assert len(receiver.seen) == 1


def test_nobody_is_told_of_what_they_may_not_see(hub: Hub, ann: Caller, user: MakeUser, receiver: Receiver) -> None:
    bob = user("bob")
    make(hub, bob, receiver.url)
    repos.create(hub, ann, "ann/hidden", private=True)
    commit(hub, ann, "ann/hidden", "main", [AddRegular("a.txt", b"a")], "add")
    drain(hub)
    assert receiver.seen == []
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/hidden", private=False))
    drain(hub)
    assert [e["event"]["scope"] for e in receiver.events()] == ["repo.config"]


def test_one_repository_of_an_organisation_can_be_watched(hub: Hub, ann: Caller, receiver: Receiver) -> None:
    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    repos.create(hub, ann, "team/one")
    repos.create(hub, ann, "team/two")
    made = make(hub, ann, receiver.url, ("model", "team/one"))
    for name in ("team/one", "team/two"):
        commit(hub, ann, name, "main", [AddRegular("a.txt", b"a")], "add")
    drain(hub)
    assert [e["repo"]["name"] for e in receiver.events()] == ["team/one"]
    hub.db.transact(lambda session: repos.move(session, ann, "team/one", "team/renamed"))
    with hub.db.read() as session:
        assert webhooks.get(session, hub, ann, made.row.id).watched == (("model", "team/renamed"),)


def test_only_the_domains_asked_for_are_told(hub: Hub, ann: Caller, receiver: Receiver) -> None:
    make(hub, ann, receiver.url, domains=["discussion"])
    repos.create(hub, ann, "ann/x")
    drain(hub)
    assert receiver.seen == []


def test_a_failed_delivery_is_tried_again_until_it_arrives(
    hub: Hub, ann: Caller, hook: Shown, receiver: Receiver
) -> None:
    receiver.statuses = [500, 503, 200]
    repos.create(hub, ann, "ann/x")
    drain(hub)
    [delivery] = deliveries_of(hub, ann, hook)
    assert (delivery.state, delivery.attempts, delivery.status, delivery.answer) == ("delivered", 3, 200, "thanks")
    assert len({body for _, body in receiver.seen}) == 1
    assert len({headers["x-webhook-delivery"] for headers, _ in receiver.seen}) == 1


def test_the_pauses_between_attempts_grow_and_hold_no_worker(
    hub: Hub, ann: Caller, hook: Shown, receiver: Receiver
) -> None:
    hub.settings.webhook_retry_s = 10
    receiver.statuses = [500]
    repos.create(hub, ann, "ann/x")
    drain(hub)
    assert len(receiver.seen) == 1
    with hub.db.read() as session:
        waiting = session.exec(select(Job).where(col(Job.not_before).is_not(None))).one()
        delivery = session.get_one(WebhookDelivery, waiting.payload["delivery"])
        assert waiting.not_before is not None
        assert delivery.sent_at is not None
        assert 9 <= (waiting.not_before - delivery.sent_at).total_seconds() <= 11


def test_a_webhook_that_only_fails_is_switched_off_and_says_why(
    hub: Hub, ann: Caller, hook: Shown, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPTS", 1)
    monkeypatch.setattr(webhooks, "FAILURES", 2)
    receiver.statuses = [404]
    for name in ("a", "b", "c"):
        repos.create(hub, ann, f"ann/{name}")
        drain(hub)
    row = row_of(hub, hook)
    assert row.disabled
    assert "its last 2 deliveries failed" in row.disabled_reason
    assert "answered 404" in row.disabled_reason
    assert len(receiver.seen) == 2
    with pytest.raises(InvalidRequest, match="switched off"):
        hub.db.transact(lambda session: webhooks.ping(session, ann, hook.row.id))
    receiver.statuses = [200]
    hub.db.transact(lambda session: webhooks.set_disabled(session, hub, ann, hook.row.id, disabled=False))
    hub.db.transact(lambda session: webhooks.ping(session, ann, hook.row.id))
    drain(hub)
    assert receiver.events()[-1]["event"] == {"scope": "webhook", "action": "ping"}


def test_what_waits_when_a_webhook_is_switched_off_is_given_up(
    hub: Hub, ann: Caller, hook: Shown, receiver: Receiver
) -> None:
    repos.create(hub, ann, "ann/x")
    hub.db.transact(lambda session: webhooks.set_disabled(session, hub, ann, hook.row.id, disabled=True))
    drain(hub)
    [delivery] = deliveries_of(hub, ann, hook)
    assert (delivery.state, receiver.seen) == ("failed", [])
    assert "switched off" in delivery.error


def test_a_delivery_is_replayed_as_one_of_its_own(hub: Hub, ann: Caller, hook: Shown, receiver: Receiver) -> None:
    repos.create(hub, ann, "ann/x")
    drain(hub)
    [old] = deliveries_of(hub, ann, hook)
    again = hub.db.transact(lambda session: webhooks.replay(session, ann, hook.row.id, old.id).id)
    drain(hub)
    assert again != old.id
    assert receiver.events()[0] == receiver.events()[1]
    assert {d.state for d in deliveries_of(hub, ann, hook)} == {"delivered"}


def test_a_day_has_a_limit_and_old_deliveries_are_forgotten(
    hub: Hub, ann: Caller, hook: Shown, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_events, "A_DAY", 3)
    for number in range(5):
        repos.create(hub, ann, f"ann/{number}")
    drain(hub)
    assert len(receiver.seen) == 3
    monkeypatch.setattr(webhook_events, "A_DAY", 100)
    monkeypatch.setattr(webhooks, "KEPT", 2)
    repos.create(hub, ann, "ann/last")
    drain(hub)
    assert len(deliveries_of(hub, ann, hook)) == 2


def test_a_private_address_is_told_to_the_owner_and_not_called(hub: Hub, ann: Caller, receiver: Receiver) -> None:
    hub.settings.outbound_allow = ""
    made = make(hub, ann, receiver.url)
    repos.create(hub, ann, "ann/x")
    drain(hub)
    assert receiver.seen == []
    [delivery] = deliveries_of(hub, ann, made)
    assert (delivery.state, delivery.attempts) == ("failed", webhooks.ATTEMPTS)
    assert "no public address" in delivery.error


def test_a_webhook_that_makes_no_sense_is_refused(hub: Hub, ann: Caller, user: MakeUser) -> None:
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (InvalidRequest, {"url": None}),
        (OutboundRefused, {"url": "file:///etc/passwd"}),
        (OutboundRefused, {"url": "http://ann:pw@example.com"}),
        (InvalidRequest, {"watched": []}),
        (InvalidRequest, {"watched": [{"type": "dataset", "name": "ann/x"}]}),
        (RepoNotFound, {"watched": [{"type": "model", "name": "ann/none"}]}),
        (AccountNotFound, {"watched": [{"type": "org", "name": "nobody"}]}),
        (InvalidRequest, {"domains": ["weather"]}),
        (InvalidRequest, {"secret": "not ascii: é"}),
    ]
    sound: dict[str, Any] = {"url": "https://example.com/", "watched": [{"type": "user", "name": "ann"}]}
    for kind, change in wrong:
        with pytest.raises(kind):
            hub.db.transact(lambda session, c=change: webhooks.create(session, hub, ann, Wish(**(sound | c))))  # type: ignore[misc]
    with hub.db.read() as session:
        assert session.exec(select(Webhook)).all() == []


def test_webhooks_are_their_owners_alone(hub: Hub, ann: Caller, hook: Shown, user: MakeUser) -> None:
    bob, reader = user("bob"), user("reader", "read")
    with hub.db.read() as session:
        assert webhooks.listing(session, hub, bob) == []
        with pytest.raises(WebhookNotFound):
            webhooks.get(session, hub, bob, hook.row.id)
        with pytest.raises(NotAuthenticated):
            webhooks.listing(session, hub, ANONYMOUS)
    with pytest.raises(WebhookNotFound):
        hub.db.transact(lambda session: webhooks.delete(session, bob, hook.row.id))
    with pytest.raises(Forbidden):
        make(hub, reader, "https://example.com")
    hub.db.transact(lambda session: webhooks.delete(session, ann, hook.row.id))
    with hub.db.read() as session:
        assert session.exec(select(WebhookDelivery)).all() == []


def test_a_sealed_text_opens_only_with_its_secret_and_for_its_purpose() -> None:
    sealed = encrypt(b"one" * 12, "x", "héllo")
    assert "héllo" not in sealed
    assert sealed != encrypt(b"one" * 12, "x", "héllo")
    assert decrypt(b"one" * 12, "x", sealed) == "héllo"
    for secret, purpose, text in ((b"two" * 12, "x", sealed), (b"one" * 12, "y", sealed), (b"one" * 12, "x", "no")):
        with pytest.raises(SealBroken, match="ADAPTERHUB_SECRET"):
            decrypt(secret, purpose, text)
