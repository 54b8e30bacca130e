"""Names: right or refused, never mended."""

import pytest

from adapterhub.hub.errors import InvalidName, InvalidPath, NameReserved
from adapterhub.hub.services.names import RESERVED, check_account_name, check_path, check_ref_name, check_repo_id


@pytest.mark.parametrize("name", ["ann", "A", "demo", "team-1", "a.b_c", "0x", "admin"])
def test_plain_account_names_are_taken(name: str) -> None:
    assert check_account_name(name) == name


def test_pages_and_routes_are_no_accounts() -> None:
    for name in RESERVED:
        with pytest.raises((NameReserved, InvalidName)):
            check_account_name(name.upper())


@pytest.mark.parametrize(
    "route", ["api", "v1", "models", "docs", "health", "static", "search", "patches", "jobs", "help"]
)
def test_the_first_segment_of_every_route_is_reserved(route: str) -> None:
    assert route in RESERVED


@pytest.mark.parametrize("name", ["mod-els", "m.odels", "H_elp"])
def test_names_that_look_like_pages_are_reserved_too(name: str) -> None:
    with pytest.raises(NameReserved):
        check_account_name(name)


@pytest.mark.parametrize("repo_id", ["a/b", "demo/code-lora", "Org.x/Model_1.5B-v2", "a/" + "b" * 96])
def test_plain_repository_names_are_taken(repo_id: str) -> None:
    assert "/".join(check_repo_id(repo_id)) == repo_id


@pytest.mark.parametrize(
    "repo_id",
    [
        *("", "a", "a/", "/b", "a/b/c", "a/..", "../b", "a/.b", "a/-b", "a/b-", "a/b.", "a/b--c", "a/b..c"),
        *("a/b.git", "a/b.lock", "a/" + "b" * 97, "a/b c", "a/b\n", "a/b\0", "a/ü", "pаypal/x", "a/b%2f", "a\\b/c"),
    ],
)
def test_other_repository_names_are_refused(repo_id: str) -> None:
    with pytest.raises(InvalidName):
        check_repo_id(repo_id)


@pytest.mark.parametrize("name", ["main", "feat/x", "v1.0", "ported/base-v2-1234abcd", "ünï", "refs-x", "1a2b3c4"])
def test_plain_ref_names_are_taken(name: str) -> None:
    assert check_ref_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "@",
            "a..b",
            "a b",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "a@{b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
        ),
        *("a.", "a.lock", "x.lock/y", "-a", "a\x7f", "a\n", "refs/heads/a", "0" * 40, "HEAD", "a" * 201, "a\u202eb"),
    ],
)
def test_what_git_refuses_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_ref_name(name)


@pytest.mark.parametrize(
    "path", ["README.md", "a/b/c.safetensors", ".gitattributes", "a b.txt", "ü/日本.txt", "x" * 255]
)
def test_plain_paths_are_taken(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "../x", "/abs", "a//b", "a/../b", "a/./b", "a/", "a\\..\\b", "C:x", "c:/x", "CON", "con.txt"),
        *("a/NUL", "lpt1.bin", "x.", "x ", " x", "a./b", ".git/config", ".GIT/x", "a/.git", "git~1/x", "a\0b", "a\nb"),
        *("a" * 256, "ü" * 128, "a/" * 32 + "b", ("a" * 200 + "/") * 5 + "a" * 30),
        *("u\u0308.txt", "a\u200bb", "a\u202eb", "a\ud800b", "a\u0378b", "a\u2028b", "a\x1bb"),
    ],
)
def test_paths_that_leave_or_deceive_are_refused(path: str) -> None:
    with pytest.raises(InvalidPath, match="nothing was stored"):
        check_path(path)
