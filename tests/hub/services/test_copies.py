"""What one repository may take over from another, and who may make it."""

import pytest
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Patch, Repository
from adapterhub.hub.errors import (
    Forbidden,
    GatedRepo,
    InvalidCommit,
    NotAuthenticated,
    RepoExists,
    RepoNotFound,
)
from adapterhub.hub.services import blobs, copies, describe, large_files, refs, repos, revisions, search, trees
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import AddLfs, AddRegular, DeleteFile, commit
from adapterhub.storage.blobs import digest_of
from tests.hub.services.samples import MakeUser, card, lora, model

LARGE = b"weights" * 400
DIGEST = digest_of(LARGE)


@pytest.fixture
def source(hub: Hub, ann: Caller) -> Repository:
    """ann/lora, with two commits on main, a branch, a tag and a large file."""
    repos.create(hub, ann, "ann/base")
    commit(hub, ann, "ann/base", "main", model(), "base")
    repo = repos.create(hub, ann, "ann/lora")
    commit(hub, ann, "ann/lora", "main", [*lora("ann/base"), card("Writes prose.", license="mit")], "push")
    hub.db.transact(lambda session: refs.create_branch(session, ann, repo, "dev"))
    hub.db.transact(lambda session: refs.create_tag(session, ann, repo, "v1", None, "first"))
    commit(hub, ann, "ann/lora", "dev", [AddRegular("deep/w.bin", LARGE)], "large")
    return repo


def share(hub: Hub, caller: Caller, source: str, target: str, *digests: str) -> dict[str, str]:
    def work(session: Session) -> dict[str, str]:
        found = [repos.find(session, caller, name) for name in (source, target)]
        return copies.share(session, caller, found[0], found[1], digests)

    return hub.db.transact(work)


def test_a_copy_has_every_commit_branch_and_tag(hub: Hub, user: MakeUser, source: Repository) -> None:
    bob = user("bob")
    made = copies.duplicate(hub, bob, "ann/lora", "bob/mine")
    with hub.db.read() as session:
        for revision in ("main", "dev", "v1"):
            oid = refs.resolve(session, source, revision)
            assert refs.resolve(session, made, revision) == oid
            assert trees.files(session, made, oid) == trees.files(session, source, oid)
            assert [c.oid for c in revisions.history(session, made, oid)] == [
                c.oid for c in revisions.history(session, source, oid)
            ]
        assert blobs.owned(session, made.id, DIGEST) is not None
        found = search.search(session, bob, "prose", author="bob")
    assert [item["id"] for item in found["items"]] == ["bob/mine"]
    view = describe.repo_view(hub, bob, "bob/mine")
    assert view["kind"] == "lora"
    assert view["base"]["repository"] == "ann/base"
    assert ("ann/lora", "copy") in {(edge["name"], edge["relation"]) for edge in view["lineage"]["parents"]}
    commit(hub, bob, "bob/mine", "main", [AddLfs("w.bin", DIGEST), DeleteFile("README.md")], "own")
    with hub.db.read() as session:
        assert "w.bin" not in [e.path for e in trees.files(session, source, refs.branch_head(session, source, "main"))]
        patches = session.exec(select(Patch).where(col(Patch.repository_id) == source.id)).all()
    assert len({patch.commit_oid for patch in patches}) == 2


def test_a_copy_is_as_private_as_it_is_said_or_as_its_source(hub: Hub, ann: Caller, source: Repository) -> None:
    assert not copies.duplicate(hub, ann, "ann/lora", "ann/one").is_private
    assert copies.duplicate(hub, ann, "ann/lora", "ann/two", private=True).is_private
    hidden = copies.duplicate(hub, ann, "ann/two", "ann/three")
    assert hidden.is_private
    view = describe.repo_view(hub, ann, "ann/three")
    assert "ann/two" not in {edge["name"] for edge in view["lineage"]["parents"]}


def test_a_copy_needs_the_right_to_read_and_to_write(hub: Hub, ann: Caller, user: MakeUser, source: Repository) -> None:
    bob = user("bob")
    with pytest.raises(NotAuthenticated):
        copies.duplicate(hub, ANONYMOUS, "ann/lora", "bob/x")
    with pytest.raises(Forbidden):
        copies.duplicate(hub, bob, "ann/lora", "ann/x")
    with pytest.raises(RepoExists):
        copies.duplicate(hub, ann, "ann/lora", "ann/base")
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/lora", gated="manual"))
    with pytest.raises(GatedRepo):
        copies.duplicate(hub, bob, "ann/lora", "bob/x")
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/lora", private=True))
    with pytest.raises(RepoNotFound):
        copies.duplicate(hub, bob, "ann/lora", "bob/x")


def test_a_model_without_fingerprint_is_looked_at_again(hub: Hub, ann: Caller, source: Repository) -> None:
    made = copies.duplicate(hub, ann, "ann/base", "ann/base-copy")
    keys = {hub.jobs.lease("worker").key for _ in range(2)}  # type: ignore[union-attr]
    assert any(str(key).startswith(made.id) for key in keys)


def test_a_large_file_is_shared_with_another_repository(hub: Hub, user: MakeUser, source: Repository) -> None:
    bob = user("bob")
    repos.create(hub, bob, "bob/mine")
    operations = [AddLfs("w.bin", DIGEST)]
    with pytest.raises(InvalidCommit, match="was not uploaded"):
        commit(hub, bob, "bob/mine", "main", operations, "take")
    unknown = digest_of(b"nobody has it")
    assert set(share(hub, bob, "ann/lora", "bob/mine", DIGEST, unknown)) == {unknown}
    assert commit(hub, bob, "bob/mine", "main", operations, "take").is_new


def test_bytes_that_no_commit_holds_are_not_shared(hub: Hub, user: MakeUser, source: Repository) -> None:
    bob = user("bob")
    repos.create(hub, bob, "bob/mine")
    stat = blobs.put(hub, b"uploaded, not committed" * 100)
    hub.db.transact(lambda session: blobs.record(session, source.id, [stat]))
    assert set(share(hub, bob, "ann/lora", "bob/mine", stat.digest)) == {stat.digest}


def test_sharing_needs_the_files_of_the_one_and_a_pen_for_the_other(
    hub: Hub, ann: Caller, user: MakeUser, source: Repository
) -> None:
    bob, eve = user("bob"), user("eve")
    repos.create(hub, bob, "bob/mine")
    with pytest.raises(Forbidden):
        share(hub, eve, "ann/lora", "bob/mine", DIGEST)
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/lora", gated="auto"))
    with pytest.raises(GatedRepo):
        share(hub, bob, "ann/lora", "bob/mine", DIGEST)
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/lora", private=True))
    with pytest.raises(RepoNotFound):
        share(hub, bob, "ann/lora", "bob/mine", DIGEST)


def test_large_files_of_every_commit_are_listed_with_a_path(hub: Hub, ann: Caller, source: Repository) -> None:
    commit(hub, ann, "ann/lora", "dev", [DeleteFile("deep/w.bin"), AddRegular("a/b/c.bin", b"c" * 2000)], "later")
    with hub.db.read() as session:
        found = large_files.listing(session, source, limit=10)
        rest = large_files.listing(session, source, after=found[0].digest, limit=2)
    sizes = {file.path: file.size_bytes for file in found if file.path != "adapter_model.safetensors"}
    assert sizes == {"deep/w.bin": len(LARGE), "a/b/c.bin": 2000}
    assert len(found) == 3
    assert [file.digest for file in found] == sorted(file.digest for file in found)
    assert rest == found[1:]
