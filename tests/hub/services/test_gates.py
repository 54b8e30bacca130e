"""Requests for gated repositories, likes, and repositories that an administrator closed."""

import threading

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import AccessRequest, AuditEvent, Repository
from adapterhub.hub.errors import (
    AccessRequestNotFound,
    AccountNotFound,
    DisabledRepo,
    Forbidden,
    GatedRepo,
    InvalidRequest,
    NotAuthenticated,
)
from adapterhub.hub.services import accounts, gates, likes, repos, resolve
from adapterhub.hub.services.access import ANONYMOUS, Caller, require_content
from adapterhub.hub.services.commits import commit
from adapterhub.merging.recipes.nodes import Ref
from tests.hub.services.samples import MakeUser, lora


@pytest.fixture
def gated(hub: Hub, ann: Caller) -> Repository:
    """A repository of ann's with a manual gate."""
    repos.create(hub, ann, "ann/gated")
    commit(hub, ann, "ann/gated", "main", lora("ann/base"), "push")
    return hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/gated", gated="manual"))


def ask(hub: Hub, caller: Caller, repo: Repository, fields: dict[str, str] | None = None) -> AccessRequest:
    return hub.db.transact(lambda session: gates.ask(session, caller, repo, fields))


def answer(hub: Hub, caller: Caller, repo: Repository, status: str = "accepted", **named: str) -> None:
    hub.db.transact(lambda session: gates.answer(session, caller, repo, status, **named))


def like(hub: Hub, caller: Caller, repo: Repository) -> None:
    hub.db.transact(lambda session: likes.like(session, caller, repo))


def state(hub: Hub, caller: Caller, repo: Repository) -> str:
    with hub.db.read() as session:
        return gates.state(session, caller, repo)


def test_a_request_waits_until_its_owner_answers(hub: Hub, ann: Caller, gated: Repository, user: MakeUser) -> None:
    bob = user("bob")
    assert state(hub, bob, gated) == state(hub, ANONYMOUS, gated) == "ask"
    first = ask(hub, bob, gated)
    again = ask(hub, bob, gated, {"other": "words"})
    assert (first.id, again.fields) == (again.id, {})
    assert state(hub, bob, gated) == "pending"
    for status, expected in (("rejected", "rejected"), ("accepted", "open"), ("pending", "pending")):
        answer(hub, ann, gated, status, request_id=first.id)
        assert state(hub, bob, gated) == expected
        with pytest.raises(AccessRequestNotFound, match=status):
            answer(hub, ann, gated, status, user="bob")


def test_being_let_in_opens_the_files_for_merging_and_serving_too(
    hub: Hub, ann: Caller, gated: Repository, user: MakeUser
) -> None:
    bob = user("bob")
    with hub.db.read() as session, pytest.raises(GatedRepo):
        resolve.find(session, bob, Ref("ann/gated"))
    hub.db.transact(lambda session: gates.grant(session, ann, gated, "bob"))
    with hub.db.read() as session:
        assert resolve.find(session, bob, Ref("ann/gated")).kind == "lora"
        require_content(session, bob, gated)


def test_who_is_let_in_does_not_see_what_turns_private(
    hub: Hub, ann: Caller, gated: Repository, user: MakeUser
) -> None:
    bob = user("bob")
    hub.db.transact(lambda session: gates.grant(session, ann, gated, "bob"))
    hidden = hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/gated", private=True))
    assert state(hub, bob, hidden) == "ask"
    with hub.db.read() as session, pytest.raises(Exception, match="no such repository"):
        repos.find(session, bob, "ann/gated")


def test_an_automatic_gate_opens_at_once_and_those_let_in_stay(
    hub: Hub, ann: Caller, gated: Repository, user: MakeUser
) -> None:
    bob = user("bob")
    repo = hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/gated", gated="auto"))
    assert ask(hub, bob, repo).status == "accepted"
    repo = hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/gated", gated="manual"))
    assert state(hub, bob, repo) == "open"


def test_there_is_nothing_to_ask_where_one_may_read_already(
    hub: Hub, ann: Caller, gated: Repository, user: MakeUser
) -> None:
    plain = repos.create(hub, ann, "ann/plain")
    for caller, repo in ((user("bob"), plain), (ann, gated)):
        with pytest.raises(InvalidRequest):
            ask(hub, caller, repo)
    for work in (
        lambda session: gates.requests(session, ann, plain, "pending", limit=1),
        lambda session: gates.grant(session, ann, plain, "bob"),
        lambda session: gates.answer(session, ann, plain, "accepted", user="bob"),
    ):
        with pytest.raises(InvalidRequest, match="not gated"):
            hub.db.transact(work)


@pytest.mark.parametrize(
    "fields", [{str(n): "x" for n in range(31)}, {"x": "y" * 2001}, {"y" * 2001: "x"}], ids=["many", "long", "name"]
)
def test_a_request_that_says_too_much_is_refused(
    hub: Hub, gated: Repository, user: MakeUser, fields: dict[str, str]
) -> None:
    bob = user("bob")
    with pytest.raises(InvalidRequest, match="at most"):
        ask(hub, bob, gated, fields)


def test_answers_name_one_who_asked(hub: Hub, ann: Caller, gated: Repository, user: MakeUser) -> None:
    bob = user("bob")
    repos.create(hub, bob, "bob/gated")
    other = hub.db.transact(lambda session: repos.update_settings(session, bob, "bob/gated", gated="manual"))

    for named, error in (
        ({"user": "bob"}, AccessRequestNotFound),
        ({"user": "nobody"}, AccountNotFound),
        ({"request_id": "0" * 32}, AccessRequestNotFound),
        ({}, InvalidRequest),
        ({"user": "bob", "request_id": "x"}, InvalidRequest),
        ({"user": "bob", "reason": "kindness"}, InvalidRequest),
    ):
        with pytest.raises(error):
            answer(hub, ann, gated, **named)
    elsewhere = ask(hub, ann, other)
    with pytest.raises(AccessRequestNotFound):
        answer(hub, ann, gated, request_id=elsewhere.id)
    with pytest.raises(Forbidden):
        answer(hub, bob, gated, user="bob")
    with pytest.raises(NotAuthenticated):
        answer(hub, ANONYMOUS, gated, user="bob")


def test_answers_are_audited(hub: Hub, ann: Caller, gated: Repository, user: MakeUser) -> None:
    bob = user("bob")
    ask(hub, bob, gated)
    answer(hub, ann, gated, user="bob")
    with hub.db.read() as session:
        events = session.exec(select(AuditEvent).where(AuditEvent.target_id == gated.id)).all()
    told = {(event.action, event.before, event.after) for event in events}
    assert {("access.ask", None, "pending"), ("access.answer", "pending", "accepted")} <= told


@pytest.mark.parametrize("card", [{}, {"extra_gated_prompt": 3, "extra_gated_fields": "x"}])
def test_a_card_that_asks_nothing_makes_an_empty_form(card: dict[str, object]) -> None:
    assert gates.form(card) == {"prompt": "", "fields": []}


def test_the_owner_does_not_open_what_an_administrator_closed(hub: Hub, admin: Caller, ann: Caller) -> None:
    repos.create(hub, ann, "ann/x")
    with pytest.raises(Forbidden):
        hub.db.transact(lambda session: repos.set_disabled(session, ann, "ann/x", "mine"))
    hub.db.transact(lambda session: repos.set_disabled(session, admin, "ann/x", "stolen"))
    for work in (
        lambda session: repos.find(session, ann, "ann/x"),
        lambda session: repos.delete(session, ann, "ann/x"),
        lambda session: repos.set_disabled(session, ann, "ann/x", None),
    ):
        with pytest.raises(DisabledRepo, match="stolen"):
            hub.db.transact(work)
    hub.db.transact(lambda session: repos.set_disabled(session, admin, "ann/x", None))
    with hub.db.read() as session:
        assert repos.find(session, ann, "ann/x").disabled_reason == ""


def test_likes_are_counted_once_each(hub: Hub, ann: Caller, user: MakeUser) -> None:
    repo = repos.create(hub, ann, "ann/x")
    people = [user(name) for name in ("bob", "eve", "joe")]
    count_at_once(hub, people, repo)
    with hub.db.read() as session:
        assert session.get_one(Repository, repo.id).likes == 3
        assert {a.name for a in likes.likers(session, repo, limit=9)} == {"bob", "eve", "joe"}
        assert len(likes.likers(session, repo, limit=9, skip=2)) == 1
        with pytest.raises(AccountNotFound):
            likes.liked(session, ann, "nobody", limit=1)
    for caller, error in ((ANONYMOUS, NotAuthenticated), (user("lee", "read"), Forbidden)):
        with pytest.raises(error):
            like(hub, caller, repo)


def test_likes_at_once_are_all_counted_by_postgres(postgres_hub: Hub) -> None:
    def work(session: Session) -> list[Caller]:
        accounts.first_admin(session, "ann")
        admin = Caller(accounts.find(session, "ann").id, "ann", is_admin=True, token_role="admin")
        made = [accounts.create_user(session, admin, f"user{n}") for n in range(4)]
        return [admin, *(Caller(one.id, one.name, token_role="write") for one in made)]

    people = postgres_hub.db.transact(work)
    repo = repos.create(postgres_hub, people[0], "ann/x")
    count_at_once(postgres_hub, people, repo)
    with postgres_hub.db.read() as session:
        assert session.get_one(Repository, repo.id).likes == 5


def count_at_once(hub: Hub, people: list[Caller], repo: Repository) -> None:
    """Every one of them likes it twice, in a thread of their own."""
    failures: list[BaseException] = []

    def work(caller: Caller) -> None:
        try:
            for _ in range(2):
                like(hub, caller, repo)
        except BaseException as error:  # noqa: BLE001  shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(caller,)) for caller in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
