"""Commits: what operations make of a branch, and what many writers make of it."""

import threading
from collections.abc import Callable

import pytest

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import (
    Conflict,
    EntryNotFound,
    Forbidden,
    HeadMoved,
    InvalidCommit,
    InvalidPath,
    NotAuthenticated,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
)
from adapterhub.hub.services import blobs, refs, repos, revisions, trees
from adapterhub.hub.services.access import ANONYMOUS, Caller
from adapterhub.hub.services.commits import (
    AddLfs,
    AddRegular,
    AddStored,
    CommitResult,
    CopyFile,
    DeleteFile,
    DeleteFolder,
    Operation,
    commit,
)
from adapterhub.storage.blobs import digest_of
from tests.hub.services.samples import MakeUser

Push = Callable[..., CommitResult]

REPO = "ann/patch"


@pytest.fixture
def repo(hub: Hub, ann: Caller) -> Repository:
    return repos.create(hub, ann, REPO)


@pytest.fixture
def push(hub: Hub, ann: Caller, repo: Repository) -> Push:
    def run(*operations: Operation, **options: str) -> CommitResult:
        return commit(hub, ann, REPO, "main", operations, "change", **options)

    return run


def paths(hub: Hub, repo: Repository, revision: str = "main") -> list[str]:
    with hub.db.read() as session:
        return [e.path for e in trees.files(session, repo, refs.resolve(session, repo, revision))]


def head(hub: Hub, repo: Repository) -> str:
    with hub.db.read() as session:
        return refs.branch_head(session, repo, "main")


def test_operations_apply_in_their_order(hub: Hub, repo: Repository, push: Push) -> None:
    push(AddRegular("a.txt", b"a"), AddRegular("dir/b.txt", b"b"), AddRegular("dir/c.txt", b"c"))
    push(
        CopyFile("a.txt", "copy.txt"),
        DeleteFile("a.txt"),
        DeleteFolder("dir/"),
        AddRegular("dir/d.txt", b"d"),
        CopyFile("copy.txt", "second.txt"),
    )
    assert paths(hub, repo) == [".gitattributes", "copy.txt", "dir/d.txt", "second.txt"]


def test_a_copy_may_come_from_an_older_revision(hub: Hub, repo: Repository, push: Push) -> None:
    old = push(AddRegular("a.txt", b"a")).oid
    push(DeleteFile("a.txt"))
    push(CopyFile("a.txt", "b.txt", revision=old))
    assert "b.txt" in paths(hub, repo)


def test_a_commit_that_changes_nothing_gives_the_head_back(hub: Hub, repo: Repository, push: Push) -> None:
    first = push(AddRegular("a.txt", b"a"))
    again = push(AddRegular("a.txt", b"a"))
    assert first.is_new
    assert not again.is_new
    assert again.oid == first.oid


def test_a_file_is_a_pointer_only_above_the_limit_of_regular_files(hub: Hub, repo: Repository, push: Push) -> None:
    push(AddRegular("small", b"x" * 1024), AddRegular("large", b"x" * 1025))
    with hub.db.read() as session:
        small = trees.entry(session, repo, head(hub, repo), "small")
        large = trees.entry(session, repo, head(hub, repo), "large")
    assert (small.is_lfs, large.is_lfs) == (False, True)
    assert large.digest == digest_of(b"x" * 1025)
    assert b"".join(blobs.open_file(hub, large, 1000)) == b"x" * 25


def test_a_file_that_the_repository_calls_large_is_a_pointer_however_it_comes(
    hub: Hub, repo: Repository, push: Push
) -> None:
    attributes = b"*.weights filter=lfs\n"
    push(AddRegular(".gitattributes", attributes), AddRegular("a.weights", b"a"), AddRegular("empty.weights", b""))
    push(AddRegular("b.txt", b"b"), AddStored("c.weights", blobs.put(hub, b"c")), CopyFile("b.txt", "b.weights"))
    with hub.db.read() as session:
        found = {e.path: e.is_lfs for e in trees.files(session, repo, head(hub, repo))}
    assert [path for path, is_lfs in found.items() if is_lfs] == ["a.weights", "b.weights", "c.weights"]
    assert not push(AddLfs("c.weights", digest_of(b"c"))).is_new


def test_stored_bytes_make_the_same_commit_as_sent_bytes(hub: Hub, ann: Caller, repo: Repository, push: Push) -> None:
    sent = push(AddRegular("f", b"hello"))
    assert not push(AddStored("f", blobs.put(hub, b"hello"))).is_new
    assert head(hub, repo) == sent.oid


def test_a_parent_that_is_not_the_head_is_refused(hub: Hub, repo: Repository, push: Push) -> None:
    old = head(hub, repo)
    new = push(AddRegular("a", b"1")).oid
    with pytest.raises(HeadMoved, match=new[:12]):
        push(AddRegular("a", b"2"), parent=old)
    assert push(AddRegular("a", b"3"), parent=new[:7]).is_new


def test_deleting_what_is_not_there_is_refused_and_nothing_is_stored(hub: Hub, repo: Repository, push: Push) -> None:
    before = head(hub, repo)
    with pytest.raises(EntryNotFound, match=r"nothing\.txt"):
        push(AddRegular("new.txt", b"x"), DeleteFile("nothing.txt"))
    with pytest.raises(EntryNotFound):
        push(DeleteFolder("nowhere"))
    assert head(hub, repo) == before


def test_knowing_a_hash_gives_no_right_to_its_bytes(
    hub: Hub, admin: Caller, user: MakeUser, repo: Repository, push: Push
) -> None:
    secret = b"private weights" * 100
    bob = user("bob")
    repos.create(hub, bob, "bob/hidden", private=True)
    commit(hub, bob, "bob/hidden", "main", [AddRegular("w.bin", secret)], "mine")
    with pytest.raises(InvalidCommit, match="was not uploaded") as known:
        push(AddLfs("w.bin", digest_of(secret), len(secret)))
    with pytest.raises(InvalidCommit, match="was not uploaded") as unknown:
        push(AddLfs("w.bin", digest_of(b"never seen"), len(secret)))
    assert str(known.value).replace(digest_of(secret), "") == str(unknown.value).replace(digest_of(b"never seen"), "")


def test_a_large_file_may_be_linked_again_within_its_repository(hub: Hub, repo: Repository, push: Push) -> None:
    content = b"y" * 3000
    push(AddRegular("one.bin", content))
    push(AddLfs("two.bin", digest_of(content)))
    with pytest.raises(InvalidCommit, match="2999 bytes, 3000 arrived"):
        push(AddLfs("three.bin", digest_of(content), 2999))
    assert "two.bin" in paths(hub, repo)


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [("a", "a/b", InvalidPath), ("Readme.md", "README.md", Conflict), ("Dir/x", "dir/y", Conflict)],
)
def test_paths_that_cannot_stand_together_are_refused(
    push: Push, first: str, second: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        push(AddRegular(first, b"1"), AddRegular(second, b"2"))


def test_a_folder_may_become_a_file_in_one_commit(hub: Hub, repo: Repository, push: Push) -> None:
    push(AddRegular("a/b", b"1"))
    push(DeleteFolder("a"), AddRegular("a", b"2"))
    assert paths(hub, repo) == [".gitattributes", "a"]


def test_a_path_that_leaves_the_repository_stores_nothing(hub: Hub, repo: Repository, push: Push) -> None:
    before = head(hub, repo)
    with pytest.raises(InvalidPath):
        push(AddRegular("../x", b"1"))
    assert head(hub, repo) == before


def test_a_commit_with_too_many_operations_is_refused(hub: Hub, ann: Caller, repo: Repository) -> None:
    few = hub.settings.model_copy(update={"commit_max_files": 2})
    small = type(hub)(few, hub.db, hub.store, hub.secret, hub.jobs)
    with pytest.raises(TooLarge, match="at most 2"):
        commit(small, ann, REPO, "main", (AddRegular(f"f{n}", b"") for n in range(3)), "many")


def test_a_vast_message_is_refused(hub: Hub, ann: Caller, repo: Repository) -> None:
    with pytest.raises(TooLarge, match="message"):
        commit(hub, ann, REPO, "main", [AddRegular("a", b"")], "x" * 70_000)


def test_commits_go_only_to_branches(hub: Hub, ann: Caller, repo: Repository, push: Push) -> None:
    oid = push(AddRegular("a", b"1")).oid
    hub.db.transact(lambda session: refs.create_tag(session, ann, repo, "v1", None, ""))
    for revision in ("v1", oid, "nowhere"):
        with pytest.raises(RevisionNotFound):
            commit(hub, ann, REPO, revision, [AddRegular("b", b"2")], "no")


def test_only_writers_commit(hub: Hub, user: MakeUser, repo: Repository) -> None:
    operations = [AddRegular("b", b"2")]
    with pytest.raises(NotAuthenticated):
        commit(hub, ANONYMOUS, REPO, "main", operations, "no")
    with pytest.raises(Forbidden):
        commit(hub, user("eve"), REPO, "main", operations, "no")
    with pytest.raises(RepoNotFound):
        commit(hub, user("mallory"), "ann/none", "main", operations, "no")


def test_history_runs_newest_first_and_ends_at_the_first_commit(hub: Hub, repo: Repository, push: Push) -> None:
    oids = [push(AddRegular("a", str(n).encode())).oid for n in range(3)]
    with hub.db.read() as session:
        rows = revisions.history(session, repo, oids[-1])
        page = revisions.history(session, repo, oids[-1], limit=1, skip=1)
    assert [r.oid for r in rows][:3] == oids[::-1]
    assert rows[-1].parents == []
    assert page[0].oid == oids[1]


def test_four_writers_of_one_branch_lose_nothing(hub: Hub, ann: Caller, repo: Repository) -> None:
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            for n in range(6):
                commit(hub, ann, REPO, "main", [AddRegular(f"w{writer}/f{n}", b"x%d" % n)], f"{writer}.{n}")
        except BaseException as error:  # noqa: BLE001  shown by the assertion below
            failures.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert failures == []
    assert len(paths(hub, repo)) == 1 + 4 * 6
    with hub.db.read() as session:
        assert len(revisions.history(session, repo, head(hub, repo), limit=100)) == 1 + 4 * 6


def test_of_many_writers_with_one_parent_exactly_one_wins(hub: Hub, ann: Caller, repo: Repository) -> None:
    parent = head(hub, repo)
    won, lost = [], []
    start = threading.Barrier(8)

    def write(writer: int) -> None:
        start.wait()
        try:
            operations = [AddRegular("same", str(writer).encode())]
            won.append(commit(hub, ann, REPO, "main", operations, "race", parent=parent))
        except HeadMoved as error:
            lost.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert head(hub, repo) == won[0].oid
