"""Patterns of .gitattributes and .gitignore, as the git binary itself reads them."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapterhub.hub.services import git_patterns
from adapterhub.hub.services.git_patterns import Attributes, Ignored

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs the git binary")

PIECES = [
    "a",
    "b",
    "ab",
    "*",
    "**",
    "?",
    "/",
    "/",
    "[ab]",
    "[!a]",
    "[a-b]",
    "[",
    "]",
    "\\",
    "\\*",
    "!",
    ".",
    "[[:alpha:]]",
]
PATTERNS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "aab", "*", "a.b", "]"]), min_size=1, max_size=4).map("/".join)


@pytest.fixture
def git(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def _asked(git: Path, *command: str, paths: list[str]) -> list[str]:
    done = subprocess.run(
        ["git", "-c", "core.excludesFile=/dev/null", *command, "--stdin", "-z"],
        cwd=git,
        input="".join(f"{path}\0" for path in paths),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.split("\0")


@needs_git
@example([("/a**", "filter=lfs")], ["a/a", "a", "ab"])
@example([("/***", "filter=lfs"), ("b/**//", "text")], ["a/a"])
@given(
    st.lists(st.tuples(PATTERNS, st.sampled_from(["filter=lfs", "-filter", "!filter", "text"])), max_size=4),
    st.lists(PATHS),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_attributes_are_as_git_reads_them(git: Path, rules: list[tuple[str, str]], paths: list[str]) -> None:
    text = "".join(f"{pattern} {word}\n" for pattern, word in rules)
    (git / ".gitattributes").write_text(text)
    answers = _asked(git, "check-attr", "filter", paths=paths)[2::3]
    found = Attributes({".gitattributes": text})
    assert [found.is_large(path) is True for path in paths] == [answer == "lfs" for answer in answers]


@needs_git
@example(["**//"], ["a/a"])
@given(st.lists(PATTERNS, max_size=4), st.lists(PATHS, min_size=1))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_ignored_is_as_git_ignores_it(git: Path, patterns: list[str], paths: list[str]) -> None:
    text = "".join(f"{pattern}\n" for pattern in patterns)
    (git / ".gitignore").write_text(text)
    answers = set(_asked(git, "check-ignore", "--no-index", paths=paths))
    ignored = Ignored(text)
    assert {path for path in paths if path in ignored} == answers - {""}


def test_the_last_line_and_the_deepest_file_decide() -> None:
    files = {
        ".gitattributes": '*.bin filter=lfs diff=lfs merge=lfs -text\nsmall.bin -filter\n"with space.txt" filter=lfs\n',
        "deep/.gitattributes": "*.bin !filter\n/x.txt filter=lfs\n",
    }
    found = Attributes(files)
    assert found.is_large("a/b.bin") is True
    assert found.is_large("small.bin") is False
    assert found.is_large("with space.txt") is True
    assert found.is_large("deep/b.bin") is False
    assert found.is_large("deep/x.txt") is True
    assert found.is_large("deep/er/x.txt") is None
    assert found.is_large("a.txt") is None


def test_macros_count_where_git_lets_them() -> None:
    found = Attributes(
        {
            ".gitattributes": "[attr]big filter=lfs -text\n*.gguf big\n",
            "d/.gitattributes": "[attr]no filter=lfs\n*.x no\n",
        }
    )
    assert found.is_large("a.gguf") is True
    assert found.is_large("d/a.x") is None


def test_what_lies_in_an_ignored_folder_is_ignored() -> None:
    ignored = Ignored("# comment\nbuild/\n*.log\n!keep.log\n/only-here\n")
    assert "build/deep/a.txt" in ignored
    assert "build" not in ignored
    assert "a/b.log" in ignored
    assert "a/keep.log" not in ignored
    assert "only-here" in ignored
    assert "a/only-here" not in ignored


@pytest.mark.parametrize("pattern", ["a*" * 120 + "b", "**/a/" * 50 + "b", "*" * 250 + "b", "/**/*a*" * 36])
def test_no_pattern_takes_long(pattern: str) -> None:
    path = "/".join(["a" * 30] * 30)
    started = time.process_time()
    Attributes({".gitattributes": f"{pattern} filter=lfs\n"}).is_large(path)
    assert path not in Ignored("# nothing\n")
    Ignored(pattern).__contains__(path)
    assert time.process_time() - started < 1


def test_only_so_many_patterns_count() -> None:
    rules = "".join(f"f{n} filter=lfs\n" for n in range(git_patterns.PATTERNS))
    found = Attributes({".gitattributes": rules, "deep/.gitattributes": "last filter=lfs\n"})
    assert found.is_large(f"f{git_patterns.PATTERNS - 1}") is True
    assert found.is_large("deep/last") is None
