"""Accounts, tokens, and who may do what."""

import base64
from datetime import timedelta

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, AuditEvent, Token, now
from adapterhub.hub.errors import (
    AccountExists,
    AccountNotFound,
    Forbidden,
    GatedRepo,
    InvalidRequest,
    InvalidToken,
    NotAuthenticated,
    RepoNotFound,
)
from adapterhub.hub.services import accounts, repos
from adapterhub.hub.services.access import (
    ANONYMOUS,
    Caller,
    authenticate,
    require_admin,
    require_content,
    require_owner,
    require_read,
    require_write,
)
from tests.hub.services.samples import MakeUser


def sign_in(hub: Hub, header: str | None) -> Caller:
    with hub.db.read() as session:
        return authenticate(session, header)


def token(hub: Hub, caller: Caller, name: str, role: str = "write", **options: object) -> str:
    def work(session: Session) -> str:
        account = accounts.find(session, name)
        return accounts.issue_token(session, caller, account, "test", role, **options)[1]  # type: ignore[arg-type]

    return hub.db.transact(work)


def test_the_first_administrator_is_made_once(hub: Hub) -> None:
    text = hub.db.transact(lambda session: accounts.first_admin(session, "admin", "a-token-of-my-own-choice"))
    assert text == "a-token-of-my-own-choice"
    assert sign_in(hub, f"Bearer {text}").is_admin
    assert hub.db.transact(lambda session: accounts.first_admin(session, "second")) is None


def test_a_token_is_256_random_bits_and_rests_as_a_hash(hub: Hub, admin: Caller, ann: Caller) -> None:
    text = token(hub, admin, "ann")
    assert text.startswith("ah_")
    assert len(text) == 3 + 43
    with hub.db.read() as session:
        stored = [t.token_sha256 for t in session.exec(select(Token))]
    assert text not in "".join(stored)


def test_a_token_comes_as_bearer_or_as_the_password_of_git(hub: Hub, admin: Caller, ann: Caller) -> None:
    text = token(hub, admin, "ann")
    basic = base64.b64encode(f"ann:{text}".encode()).decode()
    assert sign_in(hub, f"Bearer {text}") == sign_in(hub, f"basic {basic}")
    assert sign_in(hub, None) is ANONYMOUS


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer ah_no", "Digest x", "Basic %%%", "Basic YQ==", "x"]
)
def test_any_other_header_is_refused_and_not_taken_for_anonymous(hub: Hub, ann: Caller, header: str) -> None:
    with pytest.raises(InvalidToken, match="Invalid credentials in Authorization header"):
        sign_in(hub, header)


def test_expired_revoked_and_disabled_tokens_open_nothing(hub: Hub, admin: Caller, ann: Caller) -> None:
    old = token(hub, admin, "ann", expires_at=now() - timedelta(seconds=1))
    ended = token(hub, admin, "ann")
    ended_id = str(sign_in(hub, f"Bearer {ended}").token_id)
    hub.db.transact(lambda session: accounts.revoke_token(session, ann, ended_id))
    for text in (old, ended):
        with pytest.raises(InvalidToken):
            sign_in(hub, f"Bearer {text}")
    fresh = token(hub, admin, "ann")

    def disable(session: Session) -> None:
        account = accounts.find(session, "ann")
        account.disabled_at = now()
        session.add(account)

    hub.db.transact(disable)
    with pytest.raises(InvalidToken):
        sign_in(hub, f"Bearer {fresh}")


def test_nobody_revokes_the_token_of_another(hub: Hub, admin: Caller, ann: Caller, user: MakeUser) -> None:
    text = token(hub, admin, "ann")
    token_id = str(sign_in(hub, f"Bearer {text}").token_id)
    bob = user("bob")
    hub.db.transact(lambda session: accounts.revoke_token(session, bob, token_id))
    assert sign_in(hub, f"Bearer {text}").name == "ann"
    hub.db.transact(lambda session: accounts.revoke_token(session, admin, token_id))
    with pytest.raises(InvalidToken):
        sign_in(hub, f"Bearer {text}")


@pytest.mark.parametrize("name", ["ann", "ANN", "a-nn", "a.n_n"])
def test_names_that_look_alike_are_one(hub: Hub, admin: Caller, ann: Caller, name: str) -> None:
    with pytest.raises(AccountExists):
        hub.db.transact(lambda session: accounts.create_user(session, admin, name))


def test_an_account_is_found_by_its_name_alone(hub: Hub, admin: Caller, ann: Caller) -> None:
    with hub.db.read() as session:
        assert accounts.find(session, "ANN").name == "ann"
        for other in ("a-nn", "nobody"):
            with pytest.raises(AccountNotFound):
                accounts.find(session, other)


def test_only_administrators_make_and_list_users(hub: Hub, admin: Caller, ann: Caller) -> None:
    for work in (lambda s: accounts.create_user(s, ann, "eve"), lambda s: accounts.list_users(s, ann)):
        with pytest.raises(Forbidden):
            hub.db.transact(work)
    with hub.db.read() as session:
        assert [a.name for a in accounts.list_users(session, admin)] == ["ann", "root-admin"]


def test_an_administrators_lesser_token_is_no_administrator(hub: Hub, admin: Caller) -> None:
    for role in ("read", "write"):
        caller = sign_in(hub, f"Bearer {token(hub, admin, 'root-admin', role)}")
        with pytest.raises(Forbidden):
            require_admin(caller)


def test_an_unknown_token_role_is_refused(hub: Hub, admin: Caller, ann: Caller) -> None:
    with pytest.raises(InvalidRequest, match="god"):
        token(hub, admin, "ann", "god")


def test_whoami_tells_account_token_and_organisations(hub: Hub, ann: Caller) -> None:
    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    with hub.db.read() as session:
        identity = accounts.whoami(session, ann)
        with pytest.raises(NotAuthenticated):
            accounts.whoami(session, ANONYMOUS)
    assert identity.account.name == "ann"
    assert identity.token is not None
    assert [(o.name, o.role) for o in identity.organisations] == [("team", "admin")]


RIGHTS = {
    # who: (read public, read private, write, own)
    "anonymous": (True, False, False, False),
    "stranger": (True, False, False, False),
    "reader": (True, True, False, False),
    "writer": (True, True, True, False),
    "owner": (True, True, True, True),
    "owner's read token": (True, True, False, False),
    "administrator": (True, True, True, True),
}


@pytest.mark.parametrize("who", RIGHTS)
def test_rights_in_an_organisation(hub: Hub, admin: Caller, ann: Caller, user: MakeUser, who: str) -> None:
    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    members = {"reader": "read", "writer": "write"}
    caller = {
        "anonymous": lambda: ANONYMOUS,
        "owner": lambda: ann,
        "owner's read token": lambda: sign_in(hub, f"Bearer {token(hub, admin, 'ann', 'read')}"),
        "administrator": lambda: admin,
    }.get(who, lambda: user("bob"))()
    if who in members:
        hub.db.transact(lambda session: accounts.set_member(session, ann, "team", "bob", members[who]))
    public = repos.create(hub, ann, "team/open")
    private = repos.create(hub, ann, "team/closed", private=True)
    with hub.db.read() as session:

        def may(check: object, repo: object) -> bool:
            try:
                check(session, caller, repo)  # type: ignore[operator]
            except (RepoNotFound, Forbidden, NotAuthenticated):
                return False
            return True

        assert RIGHTS[who] == (
            may(require_read, public),
            may(require_read, private),
            may(require_write, public),
            may(require_owner, private),
        )


def test_the_files_of_a_gated_repository_are_for_its_members(hub: Hub, ann: Caller, user: MakeUser) -> None:
    repos.create(hub, ann, "ann/gated")
    repo = hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/gated", gated="manual"))
    with hub.db.read() as session:
        require_content(session, ann, repo)
        for caller in (ANONYMOUS, user("eve")):
            require_read(session, caller, repo)
            with pytest.raises(GatedRepo, match="gated"):
                require_content(session, caller, repo)


def test_a_member_that_leaves_loses_the_right_at_once(hub: Hub, ann: Caller, user: MakeUser) -> None:
    bob = user("bob")
    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    hub.db.transact(lambda session: accounts.set_member(session, ann, "team", "bob", "write"))
    repo = repos.create(hub, bob, "team/x", private=True)
    hub.db.transact(lambda session: accounts.set_member(session, ann, "team", "bob", None))
    with hub.db.read() as session, pytest.raises(RepoNotFound):
        require_read(session, bob, repo)
    with pytest.raises(Forbidden):
        hub.db.transact(lambda session: accounts.set_member(session, bob, "team", "bob", "admin"))


def test_deeds_are_audited_without_secrets(hub: Hub, admin: Caller, ann: Caller) -> None:
    text = token(hub, ann, "ann")
    repos.create(hub, ann, "ann/x")
    hub.db.transact(lambda session: repos.move(session, ann, "ann/x", "ann/y"))
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/y", private=True))
    hub.db.transact(lambda session: repos.delete(session, ann, "ann/y"))
    with hub.db.read() as session:
        events = session.exec(select(AuditEvent).where(AuditEvent.actor_id == ann.account_id)).all()
        account = session.get_one(Account, ann.account_id)
    actions = [e.action for e in sorted(events, key=lambda e: e.at)]
    assert actions == ["token.create", "repo.create", "repo.move", "repo.settings", "repo.delete"]
    assert all(text not in e.model_dump_json() for e in events)
    assert account.name == "ann"
