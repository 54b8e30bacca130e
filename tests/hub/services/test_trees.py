"""Folders of a commit: as git would store them, and as they are read back."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import EntryNotFound, RepoNotFound
from adapterhub.hub.services import refs, repos, trees
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, DeleteFile, Operation, commit
from adapterhub.hub.services.git_objects import blob_oid
from adapterhub.hub.services.trees import Entry

FILES = {"a/b/c.txt": b"1", "a/b.txt": b"2", "a-b/x": b"3", "a.txt": b"4", "z/y/x/w": b"1", "ü/é.txt": b""}


@pytest.fixture
def repo(hub: Hub, ann: Caller) -> Repository:
    return repos.create(hub, ann, "ann/patch")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs the git binary")
def test_a_folder_has_the_tree_that_git_writes(tmp_path: Path) -> None:
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)

    def git(*arguments: str) -> str:
        return (
            subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, check=True).stdout.decode().strip()
        )

    git("init", "-q")
    git("-c", "core.autocrlf=false", "add", ".")
    entries = {path: Entry(path, blob_oid(content)) for path, content in FILES.items()}
    assert trees.build(entries).root == git("write-tree")


def test_no_files_make_gits_empty_tree() -> None:
    assert trees.build({}).root == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def test_a_folder_is_listed_alone_or_with_all_in_it(hub: Hub, ann: Caller, repo: Repository) -> None:
    operations = [AddRegular(path, content) for path, content in FILES.items()]
    oid = commit(hub, ann, "ann/patch", "main", operations, "push").oid
    with hub.db.read() as session:
        top = trees.list_tree(session, repo, oid)
        below = trees.list_tree(session, repo, oid, "a", recursive=True)
        known = trees.paths_info(session, repo, oid, ["a.txt", "nothing", "a/b", "a/b/c.txt", "a.txt/x"])
        for path in ("nothing", "a.txt", "a/b/c.txt/d", "A"):
            with pytest.raises(EntryNotFound):
                trees.list_tree(session, repo, oid, path)
    assert [e.path for e in top] == [".gitattributes", "a", "a-b", "a.txt", "z", "ü"]
    assert [(e.path, e.is_folder) for e in below] == [("a/b", True), ("a/b.txt", False), ("a/b/c.txt", False)]
    assert [(e.path, e.is_folder) for e in known] == [("a.txt", False), ("a/b", True), ("a/b/c.txt", False)]


def test_equal_folders_are_one_object_at_two_places(hub: Hub, ann: Caller, repo: Repository) -> None:
    operations = [AddRegular("x/f", b"1"), AddRegular("y/f", b"1"), AddRegular("y/g/f", b"1")]
    oid = commit(hub, ann, "ann/patch", "main", operations, "push").oid
    with hub.db.read() as session:
        found = trees.files(session, repo, oid)
    assert [e.path for e in found] == [".gitattributes", "x/f", "y/f", "y/g/f"]


_PATHS = st.sampled_from(["a", "b/c", "b/d", "e/f/g", "e/f/h", "e/i"])
_CHANGES = st.lists(st.tuples(_PATHS, st.none() | st.binary(max_size=3)), min_size=1, max_size=5)


@given(st.lists(_CHANGES, min_size=1, max_size=4))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_commits_leave_what_a_plain_mapping_would_hold(
    hub: Hub, ann: Caller, history: list[list[tuple[str, bytes | None]]]
) -> None:
    with hub.db.read() as session:
        try:
            repo = repos.find(session, ann, "ann/model")
        except RepoNotFound:
            repo = repos.create(hub, ann, "ann/model")
    state = stored(hub, repo)
    for changes in history:
        operations: list[Operation] = []
        for path, content in changes:
            if content is not None:
                operations.append(AddRegular(path, content))
                state[path] = blob_oid(content)
            elif path in state:
                operations.append(DeleteFile(path))
                del state[path]
        commit(hub, ann, "ann/model", "main", operations, "push")
    assert stored(hub, repo) == state


def stored(hub: Hub, repo: Repository) -> dict[str, str]:
    with hub.db.read() as session:
        return {e.path: e.oid for e in trees.files(session, repo, refs.branch_head(session, repo, "main"))}
