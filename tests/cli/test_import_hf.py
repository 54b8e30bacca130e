"""Repositories that move from one real hub to another: revisions, flags, tokens, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from tests.cli.conftest import Command, Ended
from tests.clients.server import Server, running
from tests.hub.services import samples

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cli-import")]

UPSTREAM_TOKEN = "ah_the-token-of-the-other-hub-and-of-no-other"
MIB = 1 << 20


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("upstream") / "data", admin_token=UPSTREAM_TOKEN) as server:
        server.token = UPSTREAM_TOKEN
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("target") / "data") as server:
        yield server


@pytest.fixture
def here(command: Command, server: Server, upstream: Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`adapterhub import ... --upstream UPSTREAM`, told the one hub's token and not the other's."""
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    return lambda *arguments: command("import", *arguments, "--upstream", upstream.url)


def there(server: Server) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


def only(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    [line] = ended.out.splitlines()
    outcome: dict[str, Any] = json.loads(line)
    return outcome


def with_history(api: HfApi, repo_id: str, *, large: bytes = b"\0" * 3 * MIB) -> None:
    """A LoRA with three commits on main, a branch from its second, and tags on both."""
    api.create_repo(repo_id, private=True)
    api.update_repo_settings(repo_id, gated="manual")
    adds = [CommitOperationAdd(one.path, one.content) for one in samples.lora("org/base")]
    first = api.create_commit(repo_id, [*adds, CommitOperationAdd("large.bin", large)], commit_message="first")
    text = CommitOperationAdd("deep/ä.txt", b"eins\n")
    second = api.create_commit(repo_id, [text], commit_message="second", commit_description="why\n\nand more")
    api.create_tag(repo_id, tag="v1", revision=first.oid)
    api.create_branch(repo_id, branch="feat/x", revision=second.oid)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id, revision="feat/x")
    last = CommitOperationAdd("last.txt", b"last")
    api.create_commit(repo_id, [CommitOperationDelete("deep/ä.txt"), last], commit_message="third")


def same_everywhere(left: HfApi, left_id: str, right: HfApi, right_id: str) -> None:
    """Both have the same refs with the same titles and the same bytes at each commit of each branch."""
    refs, others = left.list_repo_refs(left_id), right.list_repo_refs(right_id)
    for found, wanted in ((refs.branches, others.branches), (refs.tags, others.tags)):
        assert sorted(ref.name for ref in found) == sorted(ref.name for ref in wanted)
    for ref in [*refs.branches, *refs.tags]:
        mine = left.list_repo_commits(left_id, revision=ref.name)
        theirs = right.list_repo_commits(right_id, revision=ref.name)
        assert [one.title for one in mine] == [one.title for one in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert tree(left, left_id, one.commit_id) == tree(right, right_id, other.commit_id)


def tree(api: HfApi, repo_id: str, revision: str) -> list[tuple[str, str]]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return [(entry.path, entry.blob_id) for entry in entries if isinstance(entry, RepoFile)]


def test_a_private_repository_comes_with_its_revisions_flags_and_words(
    here: Command, server: Server, upstream: Server
) -> None:
    with_history(there(upstream), "admin/kept")
    outcome = only(here("hf:admin/kept", "--upstream-token", upstream.token, "--json"))
    assert (outcome["repo"], outcome["kind"], outcome["state"]) == ("admin/kept", "lora", "imported")
    assert (outcome["branches"], outcome["tags"], outcome["commits"]) == (["main", "feat/x"], ["v1"], 4)
    same_everywhere(there(upstream), "admin/kept", there(server), "admin/kept")
    info = there(server).model_info("admin/kept")
    assert (info.private, info.gated) == (True, "manual")
    [second] = [one for one in there(server).list_repo_commits("admin/kept") if one.title == "second"]
    [original] = [one for one in there(upstream).list_repo_commits("admin/kept") if one.title == "second"]
    lines = second.message.splitlines()
    assert lines[:3] == ["why", "", "and more"]
    assert lines[-3:] == [
        "Imported-Author: admin",
        f"Imported-Date: {original.created_at.isoformat()}",
        f"Imported-From: hf:admin/kept@{original.commit_id}",
    ]


def test_an_empty_repository_that_was_public_is_closed_before_anything_arrives(
    here: Command, server: Server, upstream: Server
) -> None:
    with_history(there(upstream), "admin/closed")
    there(server).create_repo("admin/closed")
    only(here("hf:admin/closed", "--upstream-token", upstream.token, "--json"))
    info = there(server).model_info("admin/closed")
    assert (info.private, info.gated) == (True, "manual")


def test_a_second_run_brings_only_what_came_since(here: Command, server: Server, upstream: Server) -> None:
    api = there(upstream)
    with_history(api, "admin/again")
    arguments = ("hf:admin/again", "--upstream-token", upstream.token, "--json")
    only(here(*arguments))
    still = only(here(*arguments))
    assert (still["state"], still["commits"], still["sent_bytes"]) == ("unchanged", 0, 0)
    api.upload_file(path_or_fileobj=b"\0" * 3 * MIB, path_in_repo="moved/large.bin", repo_id="admin/again")
    api.create_tag("admin/again", tag="v2")
    more = only(here(*arguments))
    assert (more["state"], more["commits"], more["sent_bytes"]) == ("imported", 1, 0)
    same_everywhere(api, "admin/again", there(server), "admin/again")


def test_an_import_that_was_killed_goes_on_and_repeats_no_commit(
    server: Server, upstream: Server, tmp_path: Path
) -> None:
    api = there(upstream)
    api.create_repo("admin/killed")
    for number in range(6):
        api.upload_file(path_or_fileobj=os.urandom(4 * MIB), path_in_repo=f"{number}.bin", repo_id="admin/killed")
    command = [sys.executable, "-m", "adapterhub.cli", "import", "hf:admin/killed", "--upstream", upstream.url]
    environment = {
        **os.environ,
        "ADAPTERHUB_ENDPOINT": server.url,
        "ADAPTERHUB_TOKEN": server.token,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "ah_not-a-token-of-either",
    }
    before = len(server.blobs())
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while len(server.blobs()) < before + 2 and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = len(there(server).list_repo_commits("admin/killed"))
    assert begun < 7
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    same_everywhere(api, "admin/killed", there(server), "admin/killed")
    titles = [one.title for one in there(server).list_repo_commits("admin/killed")]
    assert len(titles) == len(set(titles)) == 7


def test_a_whole_namespace_goes_on_where_one_repository_fails(
    here: Command, command: Command, server: Server, upstream: Server
) -> None:
    made = command("--endpoint", upstream.url, "--token", upstream.token, "admin", "user", "add", "lab")
    api = HfApi(endpoint=upstream.url, token=made.out.strip())
    for name in ("one", "taken", "two"):
        api.create_repo(f"lab/{name}")
        api.upload_file(path_or_fileobj=name.encode(), path_in_repo="a.txt", repo_id=f"lab/{name}")
    there(server).create_repo("admin/taken")
    there(server).upload_file(path_or_fileobj=b"mine", path_in_repo="mine.txt", repo_id="admin/taken")
    planned = here("hf:lab", "--to", "admin", "--dry-run", "--json")
    assert [json.loads(line)["state"] for line in planned.out.splitlines()] == ["planned"] * 3
    assert not there(server).repo_exists("admin/one")
    ended = here("hf:lab", "--to", "admin", "--json")
    found = {one["repo"]: one for one in map(json.loads, ended.out.splitlines())}
    assert ended.code == 4
    assert {name: one["state"] for name, one in found.items()} == {
        "admin/one": "imported",
        "admin/taken": "failed",
        "admin/two": "imported",
    }
    assert "commits of its own" in found["admin/taken"]["problems"][0]
    assert there(server).list_repo_files("admin/taken") == [".gitattributes", "mine.txt"]


def test_a_branch_that_went_back_and_a_tag_off_every_branch_arrive(
    here: Command, server: Server, upstream: Server
) -> None:
    api = there(upstream)
    with_history(api, "admin/back")
    api.create_branch("admin/back", branch="passing")
    loose = api.upload_file(path_or_fileobj=b"l", path_in_repo="l.txt", repo_id="admin/back", revision="passing")
    api.create_tag("admin/back", tag="loose", revision=loose.oid)
    api.delete_branch("admin/back", branch="passing")
    arguments = ("hf:admin/back", "--upstream-token", upstream.token, "--json")
    only(here(*arguments))
    same_everywhere(api, "admin/back", there(server), "admin/back")
    api.delete_branch("admin/back", branch="feat/x")
    api.create_branch("admin/back", branch="feat/x", revision="v1")
    other = there(server)
    assert only(here(*arguments))["state"] == "imported"
    assert tree(other, "admin/back", "feat/x") == tree(other, "admin/back", "v1")
    api.delete_tag("admin/back", tag="loose")
    api.create_tag("admin/back", tag="loose")
    moved = only(here(*arguments))
    assert moved["state"] == "unchanged"
    assert "tag loose: moved at its source; the one here stays where it is" in moved["warnings"]


def test_what_is_not_there_or_hidden_is_said_in_one_line(here: Command, server: Server, upstream: Server) -> None:
    there(upstream).create_repo("admin/hidden", private=True)
    for arguments in (("hf:admin/hidden",), ("hf:admin/nothing",), ("hf:nobody",)):
        ended = here(*arguments)
        assert (ended.code, len(ended.err.splitlines())) == (3, 1)
        assert "--upstream-token" in ended.err
    assert here("hf:admin/hidden", "--upstream-token", server.token).code == 1
    assert here("hf:a/b/c").code == 2
    assert here("ftp://x").code == 2
