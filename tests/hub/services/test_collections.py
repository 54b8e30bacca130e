"""Collections: their slugs, their order, and who sees what in them."""

import re

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import (
    CollectionExists,
    CollectionNotFound,
    Forbidden,
    InvalidRequest,
    ItemNotFound,
    NotAuthenticated,
    RepoNotFound,
    UnsupportedRepoType,
)
from adapterhub.hub.services import accounts, collections, repos, tokens
from adapterhub.hub.services.access import ANONYMOUS, Caller, authenticate
from adapterhub.hub.services.collections import Shown
from adapterhub.hub.services.tokens import Reach
from tests.hub.services.samples import MakeUser


def make(hub: Hub, caller: Caller, title: str = "A title", namespace: str = "ann", *, private: bool = False) -> Shown:
    return hub.db.transact(lambda session: collections.create(session, caller, namespace, title, private=private))


def get(hub: Hub, caller: Caller, slug: str) -> Shown:
    with hub.db.read() as session:
        return collections.get(session, caller, slug)


def add(hub: Hub, caller: Caller, slug: str, name: str, kind: str = "model") -> Shown:
    return hub.db.transact(lambda session: collections.add_item(session, caller, slug, kind, name))


def place(hub: Hub, caller: Caller, slug: str, item_id: str, position: int) -> None:
    hub.db.transact(lambda session: collections.update_item(session, caller, slug, item_id, position=position))


def describe(hub: Hub, caller: Caller, slug: str) -> None:
    hub.db.transact(lambda session: collections.update(session, caller, slug, description="new"))


def join(hub: Hub, caller: Caller, name: str, role: str) -> None:
    hub.db.transact(lambda session: accounts.set_member(session, caller, "team", name, role))


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("My Best: Adapters!", "my-best-adapters"),
        ("Über café", "uber-cafe"),
        ("日本語", "collection"),
        ("x" * 120, "x" * 60),
        ("a / b -- c", "a-b-c"),
    ],
)
def test_a_slug_says_the_title_in_ascii_and_ends_in_24_hex_digits(hub: Hub, ann: Caller, title: str, slug: str) -> None:
    made = make(hub, ann, title)
    assert re.fullmatch(rf"ann/{slug}-[0-9a-f]{{24}}", made.slug)
    assert get(hub, ANONYMOUS, made.slug).row.title == title


def test_only_the_owner_and_the_digits_of_a_slug_count(hub: Hub, ann: Caller, user: MakeUser) -> None:
    user("bob")
    digits = make(hub, ann).slug[-24:]
    for slug in (f"ann/old-title-{digits}", f"ann/{digits}", f"ANN/x-{digits}"):
        assert get(hub, ann, slug).row.hex_id == digits
    for slug in (f"bob/x-{digits}", f"ann/x-{digits[:-1]}", f"ann/x{digits}", "ann/x", digits, f"ann/x-{'0' * 24}"):
        with pytest.raises(CollectionNotFound):
            get(hub, ann, slug)


@pytest.mark.parametrize("title", ["", "  ", "x" * 121, "a\nb", "a\0b"])
def test_a_title_that_cannot_be_shown_is_refused(hub: Hub, ann: Caller, title: str) -> None:
    with pytest.raises(InvalidRequest):
        make(hub, ann, title)


def test_a_title_is_given_once_in_a_namespace(hub: Hub, ann: Caller, user: MakeUser) -> None:
    bob = user("bob")
    first, second = make(hub, ann, "One"), make(hub, ann, "Two")
    make(hub, bob, "One", "bob")
    with pytest.raises(CollectionExists) as error:
        make(hub, ann, "One")
    assert error.value.slug == first.slug
    with pytest.raises(CollectionExists):
        hub.db.transact(lambda session: collections.update(session, ann, second.slug, title="One"))


def test_items_keep_an_order_without_gaps(hub: Hub, ann: Caller) -> None:
    slug = make(hub, ann).slug
    for name in "abcd":
        repos.create(hub, ann, f"ann/{name}")
        add(hub, ann, slug, f"ann/{name}")

    def order() -> str:
        shown = get(hub, ann, slug)
        assert [item.position for item, _ in shown.items] == list(range(len(shown.items)))
        return "".join(repo.full_name[-1] for _, repo in shown.items)

    ids = {repo.full_name[-1]: item.id for item, repo in get(hub, ann, slug).items}
    for name, position, expected in (("d", 0, "dabc"), ("d", 2, "abdc"), ("a", 99, "bdca"), ("c", -5, "cbda")):
        place(hub, ann, slug, ids[name], position)
        assert order() == expected
    hub.db.transact(lambda session: collections.remove_item(session, ann, slug, ids["b"]))
    assert order() == "cda"
    with pytest.raises(ItemNotFound):
        hub.db.transact(lambda session: collections.remove_item(session, ann, slug, ids["b"]))
    hub.db.transact(lambda session: repos.delete(session, ann, "ann/d"))
    with hub.db.read() as session:
        assert len(collections.get(session, ann, slug).items) == 2


def test_an_item_of_another_collection_is_not_reached(hub: Hub, ann: Caller) -> None:
    repos.create(hub, ann, "ann/a")
    one, two = make(hub, ann, "One").slug, make(hub, ann, "Two").slug
    [(item, _)] = add(hub, ann, one, "ann/a").items
    with pytest.raises(ItemNotFound):
        hub.db.transact(lambda session: collections.remove_item(session, ann, two, item.id))


def test_what_is_no_readable_model_is_refused(hub: Hub, ann: Caller, user: MakeUser) -> None:
    repos.create(hub, user("bob"), "bob/hidden", private=True)
    slug = make(hub, ann).slug
    for name in ("bob/hidden", "bob/nothing"):
        with pytest.raises(RepoNotFound):
            add(hub, ann, slug, name)
    for kind in ("dataset", "space", "paper", "collection", "bucket"):
        with pytest.raises(UnsupportedRepoType, match=f"a {kind} cannot"):
            add(hub, ann, slug, "x/y", kind)


def test_rights_on_collections_follow_roles_and_scopes(hub: Hub, ann: Caller, user: MakeUser) -> None:
    hub.db.transact(lambda session: accounts.create_organisation(session, ann, "team"))
    people = {role: user(f"a{role}") for role in ("write", "contributor", "read")}
    for role, person in people.items():
        join(hub, ann, str(person.name), role)
    hidden = make(hub, ann, "Hidden", "team", private=True).slug

    def fine(*permissions: str) -> Caller:
        reach = Reach({"team": permissions})
        text = hub.db.transact(lambda session: tokens.create(session, ann, "x", "fine-grained", reach))[1]
        with hub.db.read() as session:
            return authenticate(session, f"Bearer {text}")

    for caller in (*people.values(), fine("collection.read"), fine("collection.write")):
        assert get(hub, caller, hidden).row.title == "Hidden"
    for caller in (ANONYMOUS, user("eve"), fine("repo.write")):
        with pytest.raises(CollectionNotFound):
            get(hub, caller, hidden)
    for caller in (people["write"], fine("collection.write")):
        describe(hub, caller, hidden)
    for caller in (people["contributor"], people["read"], fine("collection.read")):
        with pytest.raises(Forbidden):
            describe(hub, caller, hidden)
    with pytest.raises(NotAuthenticated):
        make(hub, ANONYMOUS, "x", "team")
    with pytest.raises(Forbidden):
        make(hub, user("joe"), "x", "team")


def test_lists_are_filtered_paged_and_cut(hub: Hub, ann: Caller, user: MakeUser) -> None:
    bob = user("bob")
    slugs = [make(hub, ann, f"N{n}").slug for n in range(3)]
    make(hub, bob, "His", "bob")
    for n in range(6):
        repos.create(hub, ann, f"ann/r{n}")
        add(hub, ann, slugs[0], f"ann/r{n}")

    def listed(caller: Caller = ANONYMOUS, **asked: object) -> list[Shown]:
        with hub.db.read() as session:
            return collections.listing(session, caller, **{"limit": 10, **asked})  # type: ignore[arg-type]

    assert [one.slug for one in listed(owners=["ann"])] == [slugs[0], slugs[2], slugs[1]]
    assert [one.slug for one in listed(owners=["ann"], skip=1, limit=1)] == [slugs[2]]
    assert len(listed(owners=["ann", "bob"])) == len(listed()) == 4
    assert listed(owners=["nobody"]) == []
    assert [one.slug for one in listed(items=["models/ann/r3", "datasets/x/y"])] == [slugs[0]]
    assert listed(items=["papers/2307.09288"]) == []
    assert len(listed(owners=["ann"])[0].items) == collections.SHOWN_IN_LISTS
    with pytest.raises(InvalidRequest, match="colour"):
        listed(sort="colour")


def test_an_unknown_theme_is_refused_and_a_deleted_collection_is_gone(hub: Hub, ann: Caller) -> None:
    repos.create(hub, ann, "ann/a")
    slug = make(hub, ann).slug
    add(hub, ann, slug, "ann/a")
    with pytest.raises(InvalidRequest, match="theme"):
        hub.db.transact(lambda session: collections.update(session, ann, slug, theme="beige"))
    hub.db.transact(lambda session: collections.remove(session, ann, slug))
    with pytest.raises(CollectionNotFound):
        get(hub, ann, slug)
    with hub.db.read() as session:
        assert repos.find(session, ann, "ann/a").full_name == "ann/a"
