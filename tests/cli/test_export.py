"""Exports that are plain folders, can be checked without a server, and go into a hub again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from peft import LoraConfig

from tests.cli.conftest import Command
from tests.cli.test_import_hf import tree, with_history
from tests.clients.server import Server, running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cli-import")]

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("export") / "data") as server:
        yield server


@pytest.fixture
def api(server: Server) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def here(command: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    return command


def test_an_export_is_a_plain_folder_that_loaders_read(here: Command, api: HfApi, tmp_path: Path) -> None:
    with_history(api, "admin/out", large=os.urandom(2 * MIB))
    dest = tmp_path / "dest"
    ended = here("export", "admin/out", str(dest), "--json")
    assert ended.code == 0, ended.err
    first = json.loads(ended.out)
    assert (first["state"], first["refs"]) == ("exported", ["main", "feat/x", "v1"])
    root = dest / "admin" / "out"
    assert LoraConfig.from_pretrained(str(root)).r == 2
    assert (root / ".revisions" / "heads" / "feat%2Fx" / "deep" / "ä.txt").read_text() == "eins\n"
    assert not (root / "deep" / "ä.txt").exists()
    assert (root / "large.bin").samefile(root / ".revisions" / "tags" / "v1" / "large.bin")
    told = json.loads((dest / "adapterhub-export.json").read_text())["repositories"][0]
    assert (told["id"], told["is_private"], told["gated"], told["kind"]) == ("admin/out", True, "manual", "lora")
    assert "Every repository is a folder" in (dest / "README.md").read_text()
    assert here("export", "--check", str(dest)).code == 0


def test_an_exported_repository_goes_into_another_hub_as_it_was(
    here: Command, api: HfApi, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with_history(api, "admin/away", large=os.urandom(2 * MIB))
    dest = tmp_path / "dest"
    assert here("export", "admin/away", str(dest)).code == 0
    with running(tmp_path_factory.mktemp("other") / "data") as other:
        there = HfApi(endpoint=other.url, token=other.token)
        arguments = ("--endpoint", other.url, "import", "folder", str(dest), "--json")
        assert json.loads(here(*arguments).out)["state"] == "imported"
        for ref in ("main", "feat/x", "v1"):
            assert tree(there, "admin/away", ref) == tree(api, "admin/away", ref)
        titles = [one.title for one in there.list_repo_commits("admin/away")]
        assert titles == ["third", "first", "initial commit"]
        info = there.model_info("admin/away")
        assert (info.private, info.gated) == (True, "manual")
        assert json.loads(here(*arguments).out)["state"] == "unchanged"


def test_an_export_goes_on_and_takes_only_what_came_since(here: Command, api: HfApi, tmp_path: Path) -> None:
    with_history(api, "admin/twice", large=os.urandom(2 * MIB))
    dest = tmp_path / "dest"
    first = json.loads(here("export", "admin/twice", str(dest), "--json").out)
    again = json.loads(here("export", "admin/twice", str(dest), "--json").out)
    assert (again["received_bytes"], again["files"]) == (0, first["files"])
    (dest / "admin" / "twice" / "large.bin").write_bytes(b"cut off")
    api.delete_file("adapter_config.json", "admin/twice")
    third = json.loads(here("export", "admin/twice", str(dest), "--json").out)
    assert 0 < third["received_bytes"] < 3 * MIB
    assert not (dest / "admin" / "twice" / "adapter_config.json").exists()
    assert here("export", "--check", str(dest)).code == 0


def test_an_export_that_was_killed_goes_on(server: Server, api: HfApi, here: Command, tmp_path: Path) -> None:
    api.create_repo("admin/cut")
    names = [f"{number}.bin" for number in range(6)]
    adds = [CommitOperationAdd(name, os.urandom(4 * MIB)) for name in names]
    api.create_commit("admin/cut", adds, commit_message="all")
    dest = tmp_path / "dest"
    command = [sys.executable, "-m", "adapterhub.cli", "--endpoint", server.url, "--token", server.token]
    process = subprocess.Popen([*command, "export", "admin/cut", str(dest)], stderr=subprocess.PIPE)
    while not (dest / "admin" / "cut" / "1.bin").exists() and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert here("export", "--check", str(dest)).code == 3  # what is not whole is no export yet
    saved = json.loads(here("export", "admin/cut", str(dest), "--json").out)
    assert saved["kept_bytes"] >= 4 * MIB
    assert here("export", "--check", str(dest)).code == 0
    assert sorted(path.name for path in dest.iterdir()) == ["README.md", "adapterhub-export.json", "admin"]


def test_a_check_names_every_file_that_is_not_as_it_was(here: Command, api: HfApi, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with_history(api, f"admin/check-{name}")
    assert here("export", "--all", str(tmp_path)).code == 0
    root = tmp_path / "admin" / "check-a"
    changed = bytearray((root / "adapter_model.safetensors").read_bytes())
    changed[-1] ^= 1
    (root / "adapter_model.safetensors").unlink()
    (root / "adapter_model.safetensors").write_bytes(changed)
    (root / "adapter_config.json").unlink()
    (root / "adapter_config.json").symlink_to("/etc/hostname")
    ended = here("export", "--check", str(tmp_path), "--json")
    found = {one["repo"]: one for one in map(json.loads, ended.out.splitlines())}
    assert ended.code == 4
    assert (found["admin/check-a"]["state"], found["admin/check-b"]["state"]) == ("broken", "sound")
    problems = found["admin/check-a"]["problems"]
    assert [problem.partition(":")[0] for problem in problems] == [
        "admin/check-a/adapter_config.json",
        "admin/check-a/adapter_model.safetensors",
    ]
    refused = here("export", "admin/check-a", str(tmp_path))
    assert (refused.code, "lies behind a link" in refused.err) == (4, True)


def test_a_list_that_leads_out_of_its_folder_is_refused(here: Command, api: HfApi, tmp_path: Path) -> None:
    with_history(api, "admin/evil")
    assert here("export", "admin/evil", str(tmp_path)).code == 0
    path = tmp_path / "adapterhub-export.json"
    path.write_text(path.read_text().replace('"folder": "admin/evil"', '"folder": "admin/../../etc"'))
    for arguments in (("export", "--check", str(tmp_path)), ("import", "folder", str(tmp_path))):
        ended = here(*arguments)
        assert (ended.code, "leads out of the export" in ended.err) == (4, True)


def test_what_cannot_be_exported_is_said_in_one_line(here: Command, tmp_path: Path) -> None:
    assert here("export", "admin/nothing", str(tmp_path)).code == 4
    assert here("export", "nobody", str(tmp_path)).code == 3
    assert here("export", "admin/x").code == 2
    assert here("export", "--all", "--check", str(tmp_path)).code == 2
    assert here("export", "--check", str(tmp_path / "none")).code == 3
