"""Object ids are those that the git binary gives."""

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapterhub.hub.services.git_objects import FILE_MODE, FOLDER_MODE, blob_oid, commit_oid, pointer_text, tree_oid

Git = Callable[..., str]

GIT = shutil.which("git")
pytestmark = pytest.mark.skipif(GIT is None, reason="needs the git binary")


@pytest.fixture
def git(tmp_path: Path) -> Git:
    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> str:
        done = subprocess.run(
            [str(GIT), *arguments], cwd=tmp_path, input=stdin, capture_output=True, check=True, env=environment
        )
        return done.stdout.decode().strip()

    run("init", "-q")
    return run


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00\xff" * 1000])
def test_a_blob_has_the_id_that_git_gives(git: Git, content: bytes) -> None:
    assert blob_oid(content) == git("hash-object", "--stdin", stdin=content)


def test_a_pointer_is_written_as_git_lfs_writes_it() -> None:
    digest = "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    assert pointer_text(digest, 12345) == (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        b"size 12345\n"
    )


def test_a_tree_sorts_folders_as_git_does(git: Git) -> None:
    blob = git("hash-object", "-w", "--stdin", stdin=b"x")
    inner = git("mktree", stdin=f"100644 blob {blob}\tz\n".encode())
    names = ["a", "a.b", "a-b", "aa", "é", "Z"]
    lines = "".join(f"100644 blob {blob}\t{n}\n" for n in names if n != "a") + f"040000 tree {inner}\ta\n"
    expected = git("mktree", stdin=lines.encode())
    entries = [(FILE_MODE, n, blob) for n in names if n != "a"] + [(FOLDER_MODE, "a", inner)]
    assert tree_oid(entries) == expected
    assert tree_oid([(FILE_MODE, "z", blob)]) == inner


def test_a_commit_has_the_id_that_git_gives(git: Git) -> None:
    tree = git("mktree")
    who = {
        "GIT_AUTHOR_NAME": "Ann",
        "GIT_AUTHOR_EMAIL": "ann@example.org",
        "GIT_AUTHOR_DATE": "1700000000 +0000",
        "GIT_COMMITTER_NAME": "Ann",
        "GIT_COMMITTER_EMAIL": "ann@example.org",
        "GIT_COMMITTER_DATE": "1700000000 +0000",
    }
    first = git("commit-tree", tree, stdin=b"first", **who)
    second = git("commit-tree", tree, "-p", first, stdin="zweiter ü\n\nbody".encode(), **who)
    at = datetime.fromtimestamp(1700000000, UTC)
    assert commit_oid(tree, (), "Ann", "ann@example.org", at, "first") == first
    assert commit_oid(tree, (first,), "Ann", "ann@example.org", at, "zweiter ü\n\nbody") == second
