"""Repositories and their refs: names that lead somewhere, and names that never will again."""

import pytest
from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Commit, Repository
from adapterhub.hub.errors import (
    Conflict,
    Forbidden,
    InvalidName,
    InvalidRequest,
    NameReserved,
    NotAuthenticated,
    RefExists,
    RepoExists,
    RepoNotFound,
    RevisionNotFound,
)
from adapterhub.hub.services import refs, repos, trees
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import AddRegular, commit
from tests.hub.services.samples import MakeUser


@pytest.fixture
def repo(hub: Hub, ann: Caller) -> Repository:
    return repos.create(hub, ann, "ann/Patch")


def find(hub: Hub, caller: Caller, repo_id: str) -> str:
    with hub.db.read() as session:
        return repos.find(session, caller, repo_id).full_name


def resolve(hub: Hub, repo: Repository, revision: str | None) -> str:
    with hub.db.read() as session:
        return refs.resolve(session, repo, revision)


def test_a_fresh_repository_has_a_head_and_gitattributes(hub: Hub, repo: Repository) -> None:
    with hub.db.read() as session:
        files = trees.files(session, repo, refs.resolve(session, repo, "main"))
    assert [f.path for f in files] == [".gitattributes"]


def test_case_does_not_matter_and_the_spelling_is_kept(hub: Hub, repo: Repository) -> None:
    assert find(hub, ANONYMOUS, "ANN/patch") == "ann/Patch"


def test_a_name_is_given_once(hub: Hub, ann: Caller, repo: Repository) -> None:
    with pytest.raises(RepoExists) as error:
        repos.create(hub, ann, "ann/pAtCh")
    assert error.value.repo_id == "ann/pAtCh"


def test_a_deleted_name_is_never_given_again(hub: Hub, ann: Caller, repo: Repository) -> None:
    hub.db.transact(lambda session: repos.move(session, ann, "ann/Patch", "ann/new"))
    hub.db.transact(lambda session: repos.delete(session, ann, "ann/new"))
    for name in ("ann/patch", "ann/new"):
        with pytest.raises(RepoNotFound):
            find(hub, ann, name)
        with pytest.raises(NameReserved):
            repos.create(hub, ann, name)


def test_an_old_name_leads_to_the_new_one(hub: Hub, ann: Caller, repo: Repository) -> None:
    moved = hub.db.transact(lambda session: repos.move(session, ann, "ann/Patch", "ann/other"))
    assert (moved.id, find(hub, ANONYMOUS, "ann/patch")) == (repo.id, "ann/other")
    with pytest.raises(RepoExists):
        repos.create(hub, ann, "ann/patch")
    back = hub.db.transact(lambda session: repos.move(session, ann, "ann/other", "ann/patch"))
    assert back.full_name == "ann/patch"


def test_a_private_repository_looks_missing(hub: Hub, ann: Caller, user: MakeUser) -> None:
    repos.create(hub, ann, "ann/hidden", private=True)
    hub.db.transact(lambda session: repos.move(session, ann, "ann/hidden", "ann/renamed"))
    for caller in (ANONYMOUS, user("eve")):
        for name in ("ann/hidden", "ann/renamed", "ann/nothing"):
            with pytest.raises(RepoNotFound) as error:
                find(hub, caller, name)
            assert str(error.value) == str(RepoNotFound(name))


def test_nobody_makes_or_moves_repositories_into_the_namespace_of_another(
    hub: Hub, ann: Caller, user: MakeUser
) -> None:
    eve = user("eve")
    repos.create(hub, eve, "eve/x")
    for target in ("ann/x", "nobody/x"):
        with pytest.raises(Forbidden):
            repos.create(hub, eve, target)
        with pytest.raises(Forbidden), hub.db.write() as session:
            repos.move(session, eve, "eve/x", target)
    with pytest.raises(NotAuthenticated):
        repos.create(hub, ANONYMOUS, "ann/x")
    with pytest.raises(InvalidName):
        repos.create(hub, eve, "eve/../x")


def test_only_owners_delete_and_reconfigure(hub: Hub, repo: Repository, user: MakeUser) -> None:
    eve = user("eve")
    with pytest.raises(Forbidden):
        hub.db.transact(lambda session: repos.delete(session, eve, "ann/Patch"))
    with pytest.raises(Forbidden):
        hub.db.transact(lambda session: repos.update_settings(session, eve, "ann/Patch", private=True))


def test_settings_change_only_what_is_said(hub: Hub, ann: Caller, repo: Repository) -> None:
    changed = hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/Patch", gated="auto"))
    assert (changed.gated, changed.is_private) == ("auto", False)
    changed = hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/Patch", gated=False))
    assert changed.gated is None
    with pytest.raises(InvalidRequest, match="maybe"):
        hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/Patch", gated="maybe"))


def test_downloads_are_counted(hub: Hub, repo: Repository) -> None:
    for _ in range(3):
        hub.db.transact(lambda session: repos.count_download(session, repo.id))
    with hub.db.read() as session:
        assert repos.find(session, ANONYMOUS, "ann/Patch").downloads == 3


def test_a_revision_is_a_branch_a_tag_a_full_ref_or_a_commit(hub: Hub, ann: Caller, repo: Repository) -> None:
    oid = commit(hub, ann, "ann/Patch", "main", [AddRegular("a", b"1")], "one").oid
    hub.db.transact(lambda session: refs.create_branch(session, ann, repo, "feat/x"))
    hub.db.transact(lambda session: refs.create_tag(session, ann, repo, "v1", "feat/x", "first"))
    for revision in (None, "HEAD", "main", "feat/x", "v1", "refs/heads/main", "refs/tags/v1", oid, oid[:7], oid[:39]):
        assert resolve(hub, repo, revision) == oid
    for revision in ("", "nowhere", oid[:6], "0" * 40, "refs/heads/v1", "refs/pr/1", oid.upper()):
        with pytest.raises(RevisionNotFound):
            resolve(hub, repo, revision)


def test_one_prefix_of_two_commits_names_neither(hub: Hub, ann: Caller, repo: Repository) -> None:
    oid = resolve(hub, repo, "main")
    twin = oid[:-1] + ("0" if oid[-1] != "0" else "1")

    def add(session: Session) -> None:
        row = session.get_one(Commit, (repo.id, oid)).model_dump()
        session.add(Commit(**row | {"oid": twin}))

    hub.db.transact(add)
    with pytest.raises(RevisionNotFound):
        resolve(hub, repo, oid[:39])
    assert resolve(hub, repo, twin) == twin


def test_a_commit_of_another_repository_is_no_revision_here(hub: Hub, ann: Caller, repo: Repository) -> None:
    repos.create(hub, ann, "ann/hidden", private=True)
    oid = commit(hub, ann, "ann/hidden", "main", [AddRegular("a", b"1")], "one").oid
    with pytest.raises(RevisionNotFound):
        resolve(hub, repo, oid)


def test_branches_and_tags_come_and_go(hub: Hub, ann: Caller, repo: Repository) -> None:
    hub.db.transact(lambda session: refs.create_branch(session, ann, repo, "b"))
    with pytest.raises(RefExists):
        hub.db.transact(lambda session: refs.create_branch(session, ann, repo, "b"))
    hub.db.transact(lambda session: refs.create_tag(session, ann, repo, "b", None, ""))
    hub.db.transact(lambda session: refs.delete_tag(session, ann, repo, "b"))
    hub.db.transact(lambda session: refs.delete_branch(session, ann, repo, "b"))
    with pytest.raises(RevisionNotFound):
        hub.db.transact(lambda session: refs.delete_branch(session, ann, repo, "b"))
    with pytest.raises(Conflict, match="default branch"):
        hub.db.transact(lambda session: refs.delete_branch(session, ann, repo, "main"))
    with hub.db.read() as session:
        assert [r.name for r in refs.list_refs(session, repo)] == ["refs/heads/main"]


def test_a_ref_moves_only_from_where_one_thinks_it_is(hub: Hub, repo: Repository) -> None:
    oid = resolve(hub, repo, "main")
    assert not hub.db.transact(lambda session: refs.move_ref(session, repo, "refs/heads/main", "0" * 40, oid))
    assert hub.db.transact(lambda session: refs.move_ref(session, repo, "refs/heads/main", oid, oid))
