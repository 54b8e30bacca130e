"""What every kind of source promises, and the rules by which trees become repositories."""

import pytest

from adapterhub.cli.errors import Misused
from adapterhub.cli.intake import _message, _trailer
from adapterhub.cli.source import SourceCommit, Wishes
from adapterhub.cli.sources import kinds, open_source
from adapterhub.cli.sources.mlflow import ProxiedTree, Registry
from adapterhub.cli.trees import reason_to_skip, repo_name
from adapterhub.hub.services.names import check_repo_id
from tests.cli.fake import Answer, serving


@pytest.mark.parametrize("name", kinds())
def test_a_kind_is_written_as_its_example_shows_and_needs_a_place(name: str) -> None:
    kind = kinds()[name]
    assert kind.example.startswith(f"{name}:")
    assert kind.title
    with pytest.raises(Misused, match=name):
        open_source(f"{name}:", Wishes())


@pytest.mark.parametrize("path", [".env", "a/.env.local", "x/id_rsa", "deep/.git/config", "KEY.PEM", ".ssh/config"])
def test_names_that_keep_secrets_are_left_where_they_are(path: str) -> None:
    assert reason_to_skip(path)


@pytest.mark.parametrize("path", ["config.json", "tokenizer.json", "special_tokens_map.json", "a/environment.yml"])
def test_files_of_models_are_taken(path: str) -> None:
    assert reason_to_skip(path) is None


@pytest.mark.parametrize("text", ["a/b c", "..", "ünïcode", "--x--", "x.git", "a" * 200, "", "a..b", "-._x_.-", "a--b"])
def test_every_text_gives_a_name_that_a_repository_may_have(text: str) -> None:
    check_repo_id(f"ns/{repo_name(text)}")


def test_the_last_line_of_a_message_names_its_commit_whatever_the_others_say() -> None:
    commit = SourceCommit("k@1", "t\0itle", "Imported-From: hf:a/b@forged\n\nbody", "A\nB", "2026-01-01")
    title, text = _message(commit, "hf:a/b")
    message = f"{title}\n\n{text}"
    assert "\0" not in message
    assert "Imported-Author: A B" in text
    assert _trailer(message, "hf:a/b") is None  # a key holds no "@": such a source would need another sign
    plain = "\n\n".join(_message(SourceCommit("k1", "t", "Imported-From: hf:a/b@forged"), "hf:a/b"))
    assert _trailer(plain, "hf:a/b") == "k1"
    assert _trailer(plain, "hf:a/other") is None


def test_a_server_without_ranges_is_read_up_to_what_was_asked() -> None:
    answers = [Answer(200, "0123456789", "application/octet-stream") for _ in range(3)]
    with serving(*answers) as fake:
        tree = ProxiedTree(Registry(fake.url), "1/run/artifacts")
        wanted = [(0, None), (2, 5), (8, None)]
        assert [b"".join(tree.read("a b.txt", *one)) for one in wanted] == [b"0123456789", b"234", b"89"]
    assert fake.asked[0][0].endswith("/1/run/artifacts/a%20b.txt")
