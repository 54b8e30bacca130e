"""Own tokens and what fine-grained ones reach."""

import pytest
from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import AccountNotFound, Forbidden, InvalidRequest, InvalidToken, RepoNotFound, TokenNotFound
from adapterhub.hub.services import accounts, jobs, repos, tokens
from adapterhub.hub.services.access import Caller, authenticate
from adapterhub.hub.services.tokens import OwnToken, Reach
from tests.hub.services.samples import MakeUser


def make(hub: Hub, caller: Caller, role: str, reach: Reach | None = None, **options: int) -> tuple[OwnToken, str]:
    return hub.db.transact(lambda session: tokens.create(session, caller, f"my {role}", role, reach, **options))


def sign_in(hub: Hub, text: str) -> Caller:
    with hub.db.read() as session:
        return authenticate(session, f"Bearer {text}")


def fine(hub: Hub, caller: Caller, name: str, *permissions: str) -> Caller:
    return sign_in(hub, make(hub, caller, "fine-grained", Reach({name: permissions}))[1])


def test_a_fine_grained_token_tells_what_it_reaches_by_present_names(hub: Hub, ann: Caller) -> None:
    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    repos.create(hub, ann, "team/model")
    reach = Reach({"team/model": ["repo.write"], "ann": ["collection.write"], "team": ["repo.content.read"]})
    made, text = make(hub, ann, "fine-grained", reach)
    assert {(s.kind, s.name, s.permissions) for s in made.scoped} == {
        ("model", "team/model", ("repo.write",)),
        ("user", "ann", ("collection.write",)),
        ("org", "team", ("repo.content.read",)),
    }
    caller = sign_in(hub, text)
    assert (caller.token_role, len(caller.scopes), caller.is_admin) == ("fine-grained", 3, False)
    hub.db.transact(lambda session: repos.move(session, ann, "team/model", "team/renamed"))
    with hub.db.read() as session:
        assert "team/renamed" in {scope.name for scope in tokens.describe(session, made.token).scoped}


@pytest.mark.parametrize(
    ("reach", "error"),
    [
        (Reach(), InvalidRequest),
        (Reach({"ann": []}), InvalidRequest),
        (Reach({"ann": ["repo.destroy"]}), InvalidRequest),
        (Reach(everywhere=["repo.write"]), InvalidRequest),
        (Reach({"ann/nothing": ["repo.write"]}), RepoNotFound),
        (Reach({"bob/hidden": ["repo.write"]}), RepoNotFound),
        (Reach({"bob": ["repo.write"]}), AccountNotFound),
    ],
)
def test_a_scope_that_makes_no_sense_is_refused(
    hub: Hub, ann: Caller, user: MakeUser, reach: Reach, error: type[Exception]
) -> None:
    repos.create(hub, user("bob"), "bob/hidden", private=True)
    with pytest.raises(error):
        make(hub, ann, "fine-grained", reach)


def test_scopes_are_for_fine_grained_tokens_alone(hub: Hub, ann: Caller) -> None:
    with pytest.raises(InvalidRequest, match="scopes belong"):
        make(hub, ann, "write", Reach({"ann": ["repo.write"]}))


def test_no_token_makes_one_that_may_more(hub: Hub, admin: Caller, ann: Caller) -> None:
    for caller in (sign_in(hub, make(hub, ann, "read")[1]), fine(hub, ann, "ann", "repo.write")):
        with pytest.raises(Forbidden):
            make(hub, caller, "read")
    with pytest.raises(Forbidden, match="administrator"):
        make(hub, ann, "admin")
    assert sign_in(hub, make(hub, admin, "admin")[1]).is_admin


def test_a_token_ends_when_it_was_said_to(hub: Hub, ann: Caller) -> None:
    made, _ = make(hub, ann, "read", days=30)
    assert made.token.expires_at is not None
    assert (made.token.expires_at - made.token.created_at).days in (29, 30)
    for days in (0, 3651):
        with pytest.raises(InvalidRequest):
            make(hub, ann, "read", days=days)


def test_one_ends_ones_own_tokens_by_name_or_id(hub: Hub, ann: Caller, user: MakeUser) -> None:
    bob = user("bob")
    first, text = make(hub, ann, "read")
    second, _ = make(hub, ann, "read")
    with pytest.raises(InvalidRequest, match="2 tokens"):
        hub.db.transact(lambda session: tokens.revoke(session, ann, "my read"))
    with pytest.raises(TokenNotFound):
        hub.db.transact(lambda session: tokens.revoke(session, bob, first.token.id))
    reader = sign_in(hub, text)
    with pytest.raises(Forbidden):
        hub.db.transact(lambda session: tokens.revoke(session, reader, second.token.id))
    hub.db.transact(lambda session: tokens.revoke(session, reader, first.token.id))
    with pytest.raises(InvalidToken):
        sign_in(hub, text)
    with hub.db.read() as session:
        assert [one.token.id for one in tokens.list_own(session, ann)] == [second.token.id, str(ann.token_id)]


def test_a_fine_grained_token_sees_itself_alone(hub: Hub, ann: Caller) -> None:
    caller = fine(hub, ann, "ann", "repo.write")
    with hub.db.read() as session:
        assert [one.token.id for one in tokens.list_own(session, caller)] == [caller.token_id]


def test_a_job_has_the_power_of_the_token_that_asked(hub: Hub, admin: Caller, ann: Caller) -> None:
    repos.create(hub, ann, "ann/one")
    scoped = fine(hub, ann, "ann/one", "repo.write")

    def acts_as(caller: Caller) -> Caller:
        job = hub.jobs.submit("merge", jobs.power_of(caller), owner_id=caller.account_id)
        with hub.db.read() as session:
            return jobs.caller_of(session, job)

    assert acts_as(scoped).scopes == scoped.scopes
    assert acts_as(scoped).token_role == "fine-grained"
    assert acts_as(ann).token_role == "write"
    assert acts_as(admin).is_admin


def test_a_fine_grained_token_watches_only_the_jobs_that_it_asked_for(hub: Hub, ann: Caller) -> None:
    scoped, other = fine(hub, ann, "ann", "repo.write"), fine(hub, ann, "ann", "repo.write")
    mine = hub.jobs.submit("merge", jobs.power_of(scoped), owner_id=ann.account_id)
    hub.jobs.submit("merge", jobs.power_of(ann), owner_id=ann.account_id)
    assert [job.id for job in jobs.list_jobs(hub, scoped)] == [mine.id]
    assert jobs.list_jobs(hub, other) == []
    assert len(jobs.list_jobs(hub, ann)) == 2


def test_who_may_write_to_one_repository_may_not_make_others(hub: Hub, ann: Caller) -> None:
    repos.create(hub, ann, "ann/one", private=True)
    scoped = fine(hub, ann, "ann/one", "repo.write")
    with hub.db.read() as session:
        assert repos.find(session, scoped, "ann/one").full_name == "ann/one"
    with pytest.raises(Forbidden, match=r"repo\.write"):
        repos.create(hub, scoped, "ann/two")


def test_the_last_administrator_of_an_organisation_stays(hub: Hub, ann: Caller, user: MakeUser) -> None:
    bob = user("bob")

    def role(caller: Caller, name: str, role: str | None) -> None:
        def work(session: Session) -> None:
            accounts.set_member(session, caller, "team", name, role)

        hub.db.transact(work)

    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    for wanted in (None, "write"):
        with pytest.raises(InvalidRequest, match="only administrator"):
            role(ann, "ann", wanted)
    role(ann, "bob", "admin")
    role(ann, "ann", None)
    with hub.db.read() as session:
        assert [(a.name, r) for a, r in accounts.members(session, "team")] == [("bob", "admin")]
    with pytest.raises(Forbidden):
        role(ann, "ann", "admin")
    role(bob, "ann", "read")
    role(sign_in(hub, make(hub, ann, "write")[1]), "ann", None)
