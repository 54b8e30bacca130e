"""How a file travels: by its size, by what the repository says, by its first bytes."""

import pytest
from sqlalchemy import event

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import refs, repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.hub.services.git_objects import blob_oid
from adapterhub.hub.services.upload_modes import Mode, Wanted, modes
from adapterhub.storage.blobs import digest_of

REPO = "ann/patch"


@pytest.fixture
def repo(hub: Hub, ann: Caller) -> Repository:
    return repos.create(hub, ann, REPO)


def asked(hub: Hub, repo: Repository, *files: Wanted, git_ignore: str | None = None) -> list[Mode]:
    with hub.db.read() as session:
        return modes(session, hub, repo, refs.branch_head(session, repo, "main"), files, git_ignore)


def is_large(hub: Hub, repo: Repository, path: str, size: int = 10, sample: bytes = b"text") -> bool:
    return asked(hub, repo, Wanted(path, size, sample))[0].is_large


def test_a_fresh_repository_takes_weights_as_large_and_text_as_regular(hub: Hub, repo: Repository) -> None:
    assert is_large(hub, repo, "deep/model.safetensors")
    assert not is_large(hub, repo, "config.json")
    assert is_large(hub, repo, "config.json", size=1025)
    assert is_large(hub, repo, "picture", sample=b"\x89PNG\0")
    assert not is_large(hub, repo, "cut", sample="über".encode()[:1])


def test_the_repository_says_what_is_large(hub: Hub, ann: Caller, repo: Repository) -> None:
    operations = [
        AddRegular(".gitattributes", b"*.txt filter=lfs diff=lfs merge=lfs -text\n"),
        AddRegular("deep/.gitattributes", b"*.txt -filter\n*.bin -filter\n"),
    ]
    commit(hub, ann, REPO, "main", operations, "attributes")
    assert is_large(hub, repo, "a.txt")
    assert not is_large(hub, repo, "deep/er/a.txt")
    assert not is_large(hub, repo, "model.safetensors")
    assert not is_large(hub, repo, "deep/a.bin", sample=b"\0\xff")
    assert is_large(hub, repo, "deep/a.txt", size=1025)


def test_ignored_files_are_told(hub: Hub, ann: Caller, repo: Repository) -> None:
    files = [Wanted("a.log", 1, b"x"), Wanted("a.txt", 1, b"x")]
    assert [mode.is_ignored for mode in asked(hub, repo, *files, git_ignore="*.log\n")] == [True, False]
    commit(hub, ann, REPO, "main", [AddRegular(".gitignore", b"*.txt\n")], "ignore")
    assert [mode.is_ignored for mode in asked(hub, repo, *files)] == [False, True]
    assert [mode.is_ignored for mode in asked(hub, repo, *files, git_ignore="")] == [False, False]


def test_present_content_is_named_as_the_client_computes_it(hub: Hub, ann: Caller, repo: Repository) -> None:
    large = b"x" * 2000
    commit(hub, ann, REPO, "main", [AddRegular("a.txt", b"a"), AddRegular("large.txt", large)], "push")
    regular, as_large, shrunk = asked(
        hub, repo, Wanted("a.txt", 1, b"a"), Wanted("large.txt", 2000, b"x"), Wanted("large.txt", 1, b"x")
    )
    assert regular.known_oid == blob_oid(b"a")
    assert as_large.known_oid == digest_of(large).removeprefix("sha256:")
    assert shrunk.known_oid is None


def test_the_number_of_queries_does_not_grow_with_files(hub: Hub, ann: Caller, repo: Repository) -> None:
    folders = [f"d{n}/e/f" for n in range(60)]
    commit(hub, ann, REPO, "main", [AddRegular(f"{folder}/a.txt", b"a") for folder in folders], "deep")
    counts = []
    for some in (folders[:1], folders):
        statements: list[object] = []

        def count(*arguments: object, into: list[object] = statements) -> None:
            into.append(arguments)

        with hub.db.read() as session:
            engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", count)
        found = asked(hub, repo, *(Wanted(f"{folder}/a.txt", 1, b"a") for folder in some))
        event.remove(engine, "before_cursor_execute", count)
        assert all(mode.known_oid == blob_oid(b"a") for mode in found)
        counts.append(len(statements))
    assert counts[0] == counts[1]
