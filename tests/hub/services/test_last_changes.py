"""The commit that last changed a path, compared with looking at every commit."""

import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import last_changes, refs, repos, revisions, trees
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, CommitResult, DeleteFile, Operation, commit


def push(hub: Hub, ann: Caller, repo: Repository, *operations: Operation) -> CommitResult:
    return commit(hub, ann, repo.full_name, "main", operations, "change")


def found(hub: Hub, repo: Repository, paths: list[str] | None = None) -> dict[str, str]:
    """Path to the commit that last changed it, of all paths at the head."""
    with hub.db.read() as session:
        head = refs.branch_head(session, repo, "main")
        if paths is None:
            paths = [e.path for e in trees.list_tree(session, repo, head, recursive=True)]
        return {path: row.oid for path, row in last_changes.last_commits(session, repo, head, paths).items()}


def slowly(hub: Hub, repo: Repository) -> dict[str, str]:
    """The same by comparing each commit with the one before."""
    with hub.db.read() as session:
        rows = revisions.history(session, repo, refs.branch_head(session, repo, "main"), limit=1000)
        states = [{e.path: e.oid for e in trees.list_tree(session, repo, row.oid, recursive=True)} for row in rows] + [
            {}
        ]
    steps = list(zip(rows, states, states[1:], strict=False))
    return {path: next(row.oid for row, at, before in steps if at.get(path) != before.get(path)) for path in states[0]}


def queries(hub: Hub, repo: Repository, paths: list[str]) -> int:
    """How many it takes to look those paths up."""
    statements: list[object] = []

    def count(*arguments: object) -> None:
        statements.append(arguments)

    with hub.db.read() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", count)
    found(hub, repo, paths)
    event.remove(engine, "before_cursor_execute", count)
    return len(statements)


def test_a_file_and_its_folders_carry_the_commit_that_changed_them(hub: Hub, ann: Caller) -> None:
    repo = repos.create(hub, ann, "ann/patch")
    first = push(hub, ann, repo, AddRegular("a.txt", b"1"), AddRegular("deep/b/c.txt", b"1")).oid
    second = push(hub, ann, repo, AddRegular("deep/d.txt", b"1")).oid
    third = push(hub, ann, repo, AddRegular("other.txt", b"1")).oid
    assert {path: oid for path, oid in found(hub, repo).items() if path != ".gitattributes"} == {
        "a.txt": first,
        "deep": second,
        "deep/b": first,
        "deep/b/c.txt": first,
        "deep/d.txt": second,
        "other.txt": third,
    }
    assert found(hub, repo, ["nothing", "a.txt/x", "deep/nothing"]) == {}


def test_windows_join_without_a_seam(hub: Hub, ann: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = repos.create(hub, ann, "ann/patch")
    for n in range(7):
        push(hub, ann, repo, AddRegular(f"f{n}", b"x"), AddRegular("always", b"%d" % n))
    for window in (1, 2, 3, 7, 8, 9):
        monkeypatch.setattr(last_changes, "WINDOW", window)
        assert found(hub, repo) == slowly(hub, repo)


def test_the_number_of_queries_does_not_grow_with_paths_or_commits(hub: Hub, ann: Caller) -> None:
    repo = repos.create(hub, ann, "ann/patch")
    few = [f"deep/er/few-{n}" for n in range(2)]
    many = [f"deep/er/many-{n}" for n in range(60)]
    push(hub, ann, repo, *(AddRegular(path, b"x") for path in few))
    first = queries(hub, repo, few)
    push(hub, ann, repo, *(AddRegular(path, b"x") for path in many))
    push(hub, ann, repo, AddRegular("other", b"x"))
    assert queries(hub, repo, many) == first <= 10


_PATHS = st.sampled_from(["a", "b/c", "b/d", "e/f/g", "e/f/h", "e/i"])
_CHANGES = st.lists(st.tuples(_PATHS, st.none() | st.sampled_from([b"1", b"2"])), min_size=1, max_size=4)


@given(st.lists(_CHANGES, min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_is_read_as_by_looking_at_every_commit(
    hub: Hub, ann: Caller, monkeypatch: pytest.MonkeyPatch, history: list[list[tuple[str, bytes | None]]], window: int
) -> None:
    monkeypatch.setattr(last_changes, "WINDOW", window)
    repo = repos.create(hub, ann, f"ann/r{secrets.token_hex(6)}")
    present: set[str] = set()
    for changes in history:
        operations: list[Operation] = []
        for path, content in changes:
            if content is not None:
                operations.append(AddRegular(path, content))
                present.add(path)
            elif path in present:
                operations.append(DeleteFile(path))
                present.discard(path)
        push(hub, ann, repo, *operations)
    assert found(hub, repo) == slowly(hub, repo)
