"""Who may do what: kinds of caller × kinds of repository × deeds, as one table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import AccessRequest, Repository, now
from adapterhub.hub.errors import NotFound, Refused
from adapterhub.hub.services import access, accounts, repos, tokens
from adapterhub.hub.services.access import ANONYMOUS, Caller, authenticate, readable
from adapterhub.hub.services.tokens import Reach
from tests.hub.conftest import make_admin, make_hub

DEEDS: dict[str, Callable[[Session, Caller, Repository], object]] = {
    "s": access.require_read,
    "f": access.require_content,
    "w": access.require_write,
    "o": access.require_owner,
    "q": lambda session, caller, repo: access.require_requests(session, caller, repo, answer=False),
    "a": lambda session, caller, repo: access.require_requests(session, caller, repo, answer=True),
    "d": access.require_discussion,
    "n": lambda session, caller, repo: access.require_namespace(session, caller, repo.owner_id, "have repositories"),
}
"""see it, read its files, write, own, see the queue of requests, answer them, discuss it, make others beside it."""

RIGHTS = {
    # who: public, private, gated, disabled
    "anonymous": ("sf", "", "s", ""),
    "stranger": ("sfd", "", "sd", ""),
    "stranger, read token": ("sf", "", "s", ""),
    "stranger who was let in": ("sfd", "", "sfd", ""),
    "stranger, let in, read token": ("sf", "", "sf", ""),
    "reader": ("sfd", "sfd", "sfd", ""),
    "contributor": ("sfdn", "sfdn", "sfdn", "n"),
    "contributor who made it": ("sfwqadn", "sfwqadn", "sfwqadn", "n"),
    "contributor, read token": ("sf", "sf", "sf", ""),
    "writer": ("sfwqadn", "sfwqadn", "sfwqadn", "n"),
    "writer, read token": ("sf", "sf", "sf", ""),
    "owner": ("sfwoqadn", "sfwoqadn", "sfwoqadn", "n"),
    "owner, read token": ("sf", "sf", "sf", ""),
    "owner, fine-grained: nothing here": ("sf", "", "s", ""),
    "owner, fine-grained: repo.content.read": ("sf", "sf", "sf", ""),
    "owner, fine-grained: repo.access.read": ("sfq", "", "sq", ""),
    "owner, fine-grained: repo.write": ("sfwoqa", "sfwoqa", "sfwoqa", ""),
    "owner, fine-grained: discussion.write": ("sfd", "", "sd", ""),
    "owner, fine-grained: repo.content.read discussion.write": ("sfd", "sfd", "sfd", ""),
    "owner, fine-grained: all of the organisation": ("sfwoqan", "sfwoqan", "sfwoqan", "n"),
    "owner, fine-grained: gated": ("sf", "", "sf", ""),
    "owner, fine-grained: discussions everywhere": ("sfd", "", "sd", ""),
    "reader, fine-grained: repo.write": ("sf", "sf", "sf", ""),
    "let in, fine-grained: gated": ("sf", "", "sf", ""),
    "let in, fine-grained: nothing here": ("sf", "", "s", ""),
    "stranger, fine-grained: gated": ("sf", "", "s", ""),
    "administrator": ("sfwoqadn", "sfwoqadn", "sfwoqadn", "sfwoqadn"),
    "administrator, read token": ("sf", "", "s", ""),
}
"""Letters of DEEDS. Where a repository is hidden, only making others beside it is left."""

KINDS = ("public", "private", "gated", "disabled")


@dataclass
class World:
    """A hub with an organisation, a repository of each kind in it, and every caller of the table."""

    hub: Hub
    repos: dict[str, Repository]
    callers: dict[str, Caller]

    def may(self, session: Session, who: str, kind: str) -> str:
        """The letters of all that `who` may do to the repository of that kind."""
        return "".join(letter for letter in DEEDS if self._passes(session, DEEDS[letter], who, kind))

    def _passes(self, session: Session, deed: Callable[..., object], who: str, kind: str) -> bool:
        try:
            deed(session, self.callers[who], self.repos[kind])
        except (Refused, NotFound):
            return False
        return True


@pytest.fixture(scope="module")
def world(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The table's world; reading it changes nothing, so that its tests share it."""
    folder = tmp_path_factory.mktemp("rights")
    (folder / "hub.db").write_bytes(migrated.read_bytes())
    hub = make_hub(f"sqlite:///{folder / 'hub.db'}", folder)
    yield _people(hub, make_admin(hub))
    hub.db.close()


def _people(hub: Hub, admin: Caller) -> World:
    roles = {"owner": None, "writer": "write", "contributor": "contributor", "maker": "contributor", "reader": "read"}
    people = {name: _user(hub, admin, name) for name in (*roles, "stranger", "guest")}
    hub.db.transact(lambda session: accounts.create_organisation(session, people["owner"], "team"))
    hub.db.transact(lambda session: _join(session, people["owner"], roles))
    made = {kind: repos.create(hub, people["maker"], f"team/{kind}", private=kind == "private") for kind in KINDS}
    hub.db.transact(lambda session: _arrange(session, made, str(people["guest"].account_id)))
    repos.create(hub, people["owner"], "owner/other", private=True)
    return World(hub, made, _callers(hub, admin, people))


def _join(session: Session, owner: Caller, roles: dict[str, str | None]) -> None:
    for name, role in roles.items():
        if role:
            accounts.set_member(session, owner, "team", name, role)


def _arrange(session: Session, made: dict[str, Repository], guest_id: str) -> None:
    for repo in made.values():
        session.add(AccessRequest(repository_id=repo.id, account_id=guest_id, status="accepted"))
    made["gated"].gated = "manual"
    made["disabled"].disabled_at = now()
    session.add_all(made.values())


def _user(hub: Hub, admin: Caller, name: str) -> Caller:
    hub.db.transact(lambda session: accounts.create_user(session, admin, name))
    return _token(hub, admin, name, "write")


def _token(hub: Hub, admin: Caller, name: str, role: str) -> Caller:
    def work(session: Session) -> str:
        return accounts.issue_token(session, admin, accounts.find(session, name), "test", role)[1]

    return _sign_in(hub, hub.db.transact(work))


def _sign_in(hub: Hub, text: str) -> Caller:
    with hub.db.read() as session:
        return authenticate(session, f"Bearer {text}")


def _callers(hub: Hub, admin: Caller, people: dict[str, Caller]) -> dict[str, Caller]:
    def fine(name: str, *permissions: str, on: tuple[str, ...] = (), **reach: object) -> Caller:
        scoped = dict.fromkeys(on, permissions)
        asked = Reach(scoped, **reach)  # type: ignore[arg-type]
        made = hub.db.transact(lambda s: tokens.create(s, people[name], "test", "fine-grained", asked))
        return _sign_in(hub, made[1])

    every = tuple(f"team/{kind}" for kind in KINDS if kind != "disabled")
    return {
        "anonymous": ANONYMOUS,
        **{name: people[name] for name in ("stranger", "reader", "contributor", "writer", "owner")},
        **{f"{n}, read token": _token(hub, admin, n, "read") for n in ("stranger", "contributor", "writer", "owner")},
        "stranger who was let in": people["guest"],
        "stranger, let in, read token": _token(hub, admin, "guest", "read"),
        "contributor who made it": people["maker"],
        "owner, fine-grained: nothing here": fine("owner", "repo.write", on=("owner/other",)),
        **{
            f"owner, fine-grained: {permissions}": fine("owner", *permissions.split(), on=every)
            for permissions in (
                "repo.content.read",
                "repo.access.read",
                "repo.write",
                "discussion.write",
                "repo.content.read discussion.write",
            )
        },
        "owner, fine-grained: all of the organisation": fine("owner", "repo.write", on=("team",)),
        "owner, fine-grained: gated": fine("owner", reads_gated=True),
        "owner, fine-grained: discussions everywhere": fine("owner", everywhere=("discussion.write",)),
        "reader, fine-grained: repo.write": fine("reader", "repo.write", on=every),
        "let in, fine-grained: gated": fine("guest", reads_gated=True),
        "let in, fine-grained: nothing here": fine("guest", "repo.write", on=("guest",)),
        "stranger, fine-grained: gated": fine("stranger", reads_gated=True),
        "administrator": admin,
        "administrator, read token": _token(hub, admin, str(admin.name), "read"),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", RIGHTS)
def test_everybody_may_do_what_the_table_says_and_nothing_else(world: World, who: str, kind: str) -> None:
    with world.hub.db.read() as session:
        assert world.may(session, who, kind) == RIGHTS[who][KINDS.index(kind)]


@pytest.mark.parametrize("who", RIGHTS)
def test_lists_show_what_may_be_seen(world: World, who: str) -> None:
    with world.hub.db.read() as session:
        listed = set(session.exec(select(Repository.full_name).where(readable(world.callers[who]))))
    for kind, letters in zip(KINDS, RIGHTS[who], strict=True):
        assert (f"team/{kind}" in listed) == ("s" in letters), kind


def test_every_caller_of_the_table_is_tried(world: World) -> None:
    assert set(world.callers) == set(RIGHTS)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("owner, fine-grained: repo.write", "this fine-grained token"),
        ("owner, read token", "may only read"),
        ("administrator, read token", "may only read"),
        ("stranger", "only an administrator"),
    ],
)
def test_only_a_whole_token_of_an_administrator_administers(world: World, who: str, expected: str) -> None:
    with pytest.raises(Refused, match=expected):
        access.require_admin(world.callers[who])
