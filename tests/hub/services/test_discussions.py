"""Discussions, pull requests and their merging, and histories made one commit."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlmodel import Session, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Discussion, Repository, RepositoryTag
from adapterhub.hub.errors import (
    Conflict,
    DiscussionNotFound,
    Forbidden,
    HeadMoved,
    InvalidRequest,
    MergeConflict,
    NotAuthenticated,
    RepoNotFound,
    TooLarge,
)
from adapterhub.hub.services import blobs, discussions, pr_diff, refs, repos, revisions, squash, trees
from adapterhub.hub.services.access import ANONYMOUS, Caller, require_upload
from adapterhub.hub.services.commits import AddRegular, CommitResult, DeleteFile, Operation, commit
from adapterhub.hub.services.discussions import Details, Proposal, Wanted
from tests.hub.services.samples import MakeUser, card

T = TypeVar("T")
Deed = Callable[[Session, Repository], T]


@pytest.fixture
def repo(hub: Hub, ann: Caller) -> Repository:
    """ann/x with three files."""
    repos.create(hub, ann, "ann/x")
    files: list[Operation] = [AddRegular(f"{name}.txt", name.encode()) for name in "abc"]
    commit(hub, ann, "ann/x", "main", files, "begin")
    with hub.db.read() as session:
        return repos.find(session, ann, "ann/x")


@pytest.fixture
def bob(user: MakeUser) -> Caller:
    """A user who may not write to ann's repositories."""
    return user("bob")


def do(hub: Hub, repo: Repository, deed: Callable[..., T], caller: Caller, *arguments: Any, **named: Any) -> T:
    def work(session: Session) -> T:
        return deed(session, caller, session.get_one(Repository, repo.id), *arguments, **named)

    return hub.db.transact(work)


def details(hub: Hub, caller: Caller, repo: Repository, num: int) -> Details:
    with hub.db.read() as session:
        return discussions.details(session, caller, session.get_one(Repository, repo.id), num)


def propose(hub: Hub, caller: Caller, repo: Repository, *operations: Operation, title: str = "Propose") -> int:
    proposal = Proposal(caller, "main", title, "please")
    assert commit(hub, caller, repo.full_name, proposal.place, operations, title).is_new
    return proposal.num


def push(hub: Hub, caller: Caller, *operations: Operation) -> CommitResult:
    return commit(hub, caller, "ann/x", "main", operations, "push")


def files(hub: Hub, repo: Repository, ref: str) -> dict[str, bytes]:
    with hub.db.read() as session:
        entries = trees.files(session, repo, refs.resolve(session, repo, ref))
    return {e.path: b"".join(blobs.open_file(hub, e)) for e in entries if e.path != ".gitattributes"}


def kinds(found: Details) -> list[str]:
    return [told.event.kind for told in found.events]


def test_a_discussion_is_talked_in_renamed_and_closed(hub: Hub, ann: Caller, bob: Caller, repo: Repository) -> None:
    num = do(hub, repo, discussions.create, bob, "Is it good?", "I wonder", is_pull_request=False).num
    do(hub, repo, discussions.comment, ann, num, "it is")
    do(hub, repo, discussions.rename, ann, num, "It is good")
    do(hub, repo, discussions.set_status, bob, num, "closed", "thanks")
    found = details(hub, ANONYMOUS, repo, num)
    assert (num, found.shown.author, found.shown.row.title, found.shown.row.status) == (
        1,
        "bob",
        "It is good",
        "closed",
    )
    assert kinds(found) == ["comment", "comment", "title-change", "comment", "status-change"]
    assert [told.author for told in found.events] == ["bob", "ann", "ann", "bob", "bob"]
    with pytest.raises(Conflict, match="closed already"):
        do(hub, repo, discussions.set_status, bob, num, "closed")
    do(hub, repo, discussions.set_status, ann, num, "open")


def test_a_comment_is_edited_by_its_author_and_hidden_by_who_may_write(
    hub: Hub, ann: Caller, bob: Caller, repo: Repository
) -> None:
    num = do(hub, repo, discussions.create, bob, "Is it good?", "first", is_pull_request=False).num
    comment_id = details(hub, bob, repo, num).events[0].event.id
    do(hub, repo, discussions.edit, bob, num, comment_id, "second")
    [told] = details(hub, bob, repo, num).events
    assert (told.event.detail["text"], told.event.detail["history"][0]["raw"]) == ("second", "first")
    with pytest.raises(Forbidden):
        do(hub, repo, discussions.edit, ann, num, comment_id, "third")
    do(hub, repo, discussions.hide, ann, num, comment_id)
    [told] = details(hub, bob, repo, num).events
    assert told.event.detail == {"text": "", "history": [], "hidden": True}
    with pytest.raises(Conflict, match="hidden"):
        do(hub, repo, discussions.edit, bob, num, comment_id, "third")


def test_discussions_and_pull_requests_share_their_numbers_and_are_listed(
    hub: Hub, ann: Caller, bob: Caller, repo: Repository
) -> None:
    do(hub, repo, discussions.create, ann, "one", "text", is_pull_request=False)
    assert propose(hub, bob, repo, AddRegular("d.txt", b"d")) == 2
    assert do(hub, repo, discussions.create, bob, "three", "text", is_pull_request=True).num == 3
    do(hub, repo, discussions.set_status, ann, 1, "closed")

    def nums(**wanted: str) -> list[int]:
        with hub.db.read() as session:
            here = session.get_one(Repository, repo.id)
            found, total = discussions.listing(session, ANONYMOUS, here, Wanted(**wanted))
        assert total == len(found)
        return [one.row.num for one in found]

    assert nums() == [3, 2, 1]
    assert nums(kind="pull_request") == [3, 2]
    assert nums(kind="discussion") == [1]
    assert nums(status="open") == [3, 2]
    assert nums(status="closed") == [1]
    assert nums(author="BOB") == [3, 2]
    with pytest.raises(InvalidRequest):
        nums(status="strange")


def test_a_pull_request_stands_beside_the_branch_until_it_is_merged(
    hub: Hub, ann: Caller, bob: Caller, repo: Repository
) -> None:
    num = propose(hub, bob, repo, AddRegular("d.txt", b"d"), DeleteFile("a.txt"))
    assert files(hub, repo, "main") == {"a.txt": b"a", "b.txt": b"b", "c.txt": b"c"}
    assert files(hub, repo, "refs/pr/1") == {"b.txt": b"b", "c.txt": b"c", "d.txt": b"d"}
    commit(hub, bob, "ann/x", discussions.place_of(num), [AddRegular("e.txt", b"e")], "more")
    push(hub, ann, AddRegular("b.txt", b"changed on main"))
    with hub.db.read() as session:
        ours = refs.branch_head(session, repo, "main")
        theirs = refs.head(session, repo, "refs/pr/1")
    oid = discussions.merge(hub, ann, "ann/x", num, "thank you")
    assert files(hub, repo, "main") == {"b.txt": b"changed on main", "c.txt": b"c", "d.txt": b"d", "e.txt": b"e"}
    with hub.db.read() as session:
        [merged] = revisions.history(session, repo, oid, limit=1)
    assert merged.parents == [ours, theirs]
    found = details(hub, ann, repo, num)
    assert (found.shown.row.status, found.shown.row.merge_oid) == ("merged", oid)
    assert kinds(found) == ["comment", "commit", "commit", "comment", "status-change"]
    for again in (lambda: discussions.merge(hub, ann, "ann/x", num), lambda: _late(hub, bob, num)):
        with pytest.raises(Conflict):
            again()


def _late(hub: Hub, bob: Caller, num: int) -> None:
    commit(hub, bob, "ann/x", discussions.place_of(num), [AddRegular("f.txt", b"f")], "late")


def test_what_both_sides_changed_is_a_conflict_unless_they_agree(
    hub: Hub, ann: Caller, bob: Caller, repo: Repository
) -> None:
    num = propose(hub, bob, repo, AddRegular("a.txt", b"bob"), AddRegular("same.txt", b"s"), DeleteFile("c.txt"))
    before = push(hub, ann, AddRegular("a.txt", b"ann"), AddRegular("same.txt", b"s"), AddRegular("c.txt", b"ann")).oid
    assert details(hub, ann, repo, num).conflicts == ("a.txt", "c.txt")
    with pytest.raises(MergeConflict, match=r"a\.txt, c\.txt") as refused:
        discussions.merge(hub, ann, "ann/x", num)
    assert refused.value.paths == ["a.txt", "c.txt"]
    with hub.db.read() as session:
        assert refs.branch_head(session, repo, "main") == before
    push(hub, ann, AddRegular("a.txt", b"bob"), DeleteFile("c.txt"))
    discussions.merge(hub, ann, "ann/x", num)
    assert files(hub, repo, "main")["a.txt"] == b"bob"


def test_a_proposal_changes_nothing_that_is_known_of_the_repository(
    hub: Hub, ann: Caller, bob: Caller, repo: Repository
) -> None:
    num = propose(hub, bob, repo, card(tags=["proposed"]))
    with hub.db.read() as session:
        tags = {row.tag for row in session.exec(select(RepositoryTag))}
        assert "proposed" not in tags
        assert session.get_one(Repository, repo.id).updated_at == repo.updated_at
        assert "refs/pr/1" in [ref.name for ref in refs.list_refs(session, repo)]
    discussions.merge(hub, ann, "ann/x", num)
    with hub.db.read() as session:
        assert "proposed" in {row.tag for row in session.exec(select(RepositoryTag))}


def test_a_draft_is_opened_before_it_is_merged(hub: Hub, ann: Caller, repo: Repository) -> None:
    num = do(hub, repo, discussions.create, ann, "A draft", "text", is_pull_request=True).num
    commit(hub, ann, "ann/x", discussions.place_of(num), [AddRegular("d.txt", b"d")], "fill")
    with pytest.raises(Conflict, match="is draft"):
        discussions.merge(hub, ann, "ann/x", num)
    do(hub, repo, discussions.set_status, ann, num, "open")
    discussions.merge(hub, ann, "ann/x", num)
    assert files(hub, repo, "main")["d.txt"] == b"d"


def test_rights_of_readers_authors_and_writers(
    hub: Hub, ann: Caller, bob: Caller, user: MakeUser, repo: Repository
) -> None:
    carl, reader = user("carl"), user("dora", "read")
    num = propose(hub, bob, repo, AddRegular("d.txt", b"d"))
    with pytest.raises(Forbidden):
        commit(hub, carl, "ann/x", discussions.place_of(num), [AddRegular("e.txt", b"e")], "not mine")
    with pytest.raises(Forbidden):
        commit(hub, bob, "ann/x", "main", [AddRegular("e.txt", b"e")], "not mine")
    for caller in (bob, carl):
        with pytest.raises(Forbidden):
            discussions.merge(hub, caller, "ann/x", num)
    with pytest.raises(Forbidden):
        do(hub, repo, discussions.rename, carl, num, "Other")
    with pytest.raises(Forbidden):
        do(hub, repo, discussions.set_status, carl, num, "closed")
    with pytest.raises(Forbidden):
        do(hub, repo, discussions.create, reader, "title", "text", is_pull_request=False)
    with pytest.raises(NotAuthenticated):
        do(hub, repo, discussions.comment, ANONYMOUS, num, "hello")
    with hub.db.read() as session:
        require_upload(session, carl, repo)
        with pytest.raises(Forbidden):
            require_upload(session, reader, repo)
    hub.db.transact(lambda session: repos.update_settings(session, ann, "ann/x", private=True))
    with pytest.raises(RepoNotFound):
        do(hub, repo, discussions.comment, bob, num, "hello")
    with pytest.raises(RepoNotFound):
        details(hub, bob, repo, num)


def test_what_makes_no_sense_is_refused(hub: Hub, ann: Caller, repo: Repository, monkeypatch: Any) -> None:
    num = do(hub, repo, discussions.create, ann, "title", "text", is_pull_request=False).num
    for title in ("", " ", "x" * 201, "a\0bcd"):
        with pytest.raises(InvalidRequest, match="title"):
            do(hub, repo, discussions.create, ann, title, "text", is_pull_request=False)
    with pytest.raises(TooLarge):
        do(hub, repo, discussions.comment, ann, num, "é" * (discussions.COMMENT_BYTES // 2 + 1))
    with pytest.raises(InvalidRequest):
        do(hub, repo, discussions.comment, ann, num, " \n ")
    for missing in (0, 7, -1, 1 << 40):
        with pytest.raises(DiscussionNotFound):
            details(hub, ann, repo, missing)
    with pytest.raises(Conflict, match="holds nothing to merge"):
        discussions.merge(hub, ann, "ann/x", num)
    monkeypatch.setattr(discussions, "OPEN_AT_ONCE", 1)
    for is_pull_request in (False, True):
        with pytest.raises(InvalidRequest, match="close some"):
            do(hub, repo, discussions.create, ann, "title", "text", is_pull_request=is_pull_request)
    do(hub, repo, discussions.set_status, ann, num, "closed")
    draft = do(hub, repo, discussions.create, ann, "title", "text", is_pull_request=True).num
    with pytest.raises(InvalidRequest, match="close some"):
        do(hub, repo, discussions.set_status, ann, num, "open")
    do(hub, repo, discussions.set_status, ann, draft, "open")


def test_a_diff_compares_no_more_than_it_is_allowed_to(
    hub: Hub, ann: Caller, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pr_diff, "FILE_LINES", 10)
    monkeypatch.setattr(pr_diff, "ALL_LINES", 25)
    texts = {f"{n}.txt": b"".join(b"%d\n" % i for i in range(9)) for n in range(4)}
    long = AddRegular("long.txt", b"line\n" * 11)
    num = propose(hub, ann, repo, *(AddRegular(path, text) for path, text in texts.items()), long, DeleteFile("a.txt"))
    with hub.db.read() as session:
        here = session.get_one(Repository, repo.id)
        changed = pr_diff.changes(session, ann, discussions.details(session, ann, here, num))
    text = pr_diff.text_of(hub, changed)
    assert text.count("+8\n") == 2  # the third no longer fits
    assert "Binary files /dev/null and b/2.txt differ" in text
    assert "Binary files /dev/null and b/long.txt differ" in text
    assert "-a\n\\ No newline at end of file\n" in text


def test_many_open_at_once_and_each_has_a_number_of_its_own(hub: Hub, ann: Caller, repo: Repository) -> None:
    _open_together(hub, ann, repo)


def test_the_same_on_postgres(postgres_hub: Hub) -> None:
    from tests.hub.conftest import make_admin

    admin = make_admin(postgres_hub)
    repos.create(postgres_hub, admin, "root-admin/x")
    with postgres_hub.db.read() as session:
        repo = repos.find(session, admin, "root-admin/x")
    _open_together(postgres_hub, admin, repo)
    proposal = Proposal(admin, "main", "Propose", "please")
    commit(postgres_hub, admin, "root-admin/x", proposal.place, [AddRegular("d.txt", b"d")], "Propose")
    discussions.merge(postgres_hub, admin, "root-admin/x", proposal.num)


def _open_together(hub: Hub, caller: Caller, repo: Repository) -> None:
    def open_one(number: int) -> None:
        do(hub, repo, discussions.create, caller, f"title {number}", "text", is_pull_request=False)

    together = [threading.Thread(target=open_one, args=(number,)) for number in range(6)]
    for one in together:
        one.start()
    for one in together:
        one.join()
    with hub.db.read() as session:
        found = session.exec(select(Discussion.num).where(Discussion.repository_id == repo.id)).all()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]


def test_a_commit_that_is_sent_again_is_the_one_that_is_there(hub: Hub, ann: Caller, repo: Repository) -> None:
    with hub.db.read() as session:
        parent = refs.branch_head(session, repo, "main")

    def send(content: bytes) -> CommitResult:
        return commit(hub, ann, "ann/x", "main", [AddRegular("d.txt", content)], "again", parent=parent[:9])

    first = send(b"d")
    again = send(b"d")
    assert (first.is_new, again.is_new, again.oid) == (True, False, first.oid)
    with pytest.raises(HeadMoved):
        send(b"other")
    push(hub, ann, AddRegular("e.txt", b"e"))
    with pytest.raises(HeadMoved):
        send(b"d")


def test_a_history_becomes_one_commit_with_the_same_files(hub: Hub, ann: Caller, bob: Caller, repo: Repository) -> None:
    push(hub, ann, AddRegular("d.txt", b"d"), card(tags=["kept"]))
    before = files(hub, repo, "main")
    with pytest.raises(Forbidden):
        squash.squash(hub, bob, "ann/x", "main", "all of it")
    oid = squash.squash(hub, ann, "ann/x", "main", "all of it")
    with hub.db.read() as session:
        [only] = revisions.history(session, repo, refs.branch_head(session, repo, "main"))
        assert (only.oid, only.message, only.parents) == (oid, "all of it", [])
        assert "kept" in {row.tag for row in session.exec(select(RepositoryTag))}
    assert files(hub, repo, "main") == before
