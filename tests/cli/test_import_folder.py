"""Folders with many patches: what becomes a repository, what is left out and why, and going on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from adapterhub.hub.services.commits import AddRegular
from tests.cli.conftest import Command
from tests.clients.server import Server, running
from tests.hub.services import samples

pytestmark = pytest.mark.xdist_group("cli-import")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("folder-target") / "data") as server:
        yield server


@pytest.fixture
def here(command: Command, server: Server, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ADAPTERHUB_ENDPOINT", server.url)
    monkeypatch.setenv("ADAPTERHUB_TOKEN", server.token)
    return lambda *arguments: command("import", *arguments)


@pytest.fixture
def api(server: Server) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


def put(folder: Path, files: list[AddRegular]) -> None:
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patches, a model with a patch inside it, documents, a broken patch, and what must not travel."""
    root = tmp_path / "tree"
    put(root / "team a" / "code", [*samples.lora("a/base"), samples.card(model_name="Code Writer")])
    put(root / "team a" / "prose", samples.lora("a/base", r=3))
    put(root / "base", samples.model())
    put(root / "base" / "checkpoint-10", samples.lora("a/base"))
    put(root / "notes" / "deep", [AddRegular("a.txt", b"a")])
    put(root / "broken", samples.lora("a/base"))
    (root / "broken" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    code = root / "team a" / "code"
    (code / "optimizer.pt").write_bytes(b"\x80\x04pickled")
    (code / ".env").write_text("TOKEN=secret")
    (code / ".git").mkdir()
    (code / ".git" / "config").write_text("[core]")
    os.mkfifo(code / "pipe")
    (tmp_path / "outside.txt").write_text("outside")
    (code / "leaves").symlink_to(tmp_path / "outside.txt")
    (code / "stays.txt").symlink_to(code / "README.md")
    return root


def outcomes(text: str) -> dict[str, dict[str, object]]:
    found = [json.loads(line) for line in text.splitlines()]
    return {str(one["repo"] or one["source"]): one for one in found}


def test_each_patch_in_a_folder_becomes_a_repository_and_the_rest_is_named(
    here: Command, tree: Path, api: HfApi
) -> None:
    planned = here("folder", str(tree), "--dry-run", "--json")
    assert not api.repo_exists("admin/base")
    ended = here("folder", str(tree), "--json")
    found = outcomes(ended.out)
    assert ended.code == planned.code == 4
    assert {name: (one["state"], one["kind"]) for name, one in found.items()} == {
        "admin/base": ("imported", "model"),
        "admin/team-a-code": ("imported", "lora"),
        "admin/team-a-prose": ("imported", "lora"),
        "broken": ("failed", ""),
        "notes/deep": ("skipped", ""),
    }
    assert {name: one["kind"] for name, one in outcomes(planned.out).items()} == {
        n: o["kind"] for n, o in found.items()
    }
    assert "broken/adapter_model.safetensors" in str(found["broken"]["problems"])
    code = found["admin/team-a-code"]
    assert code["skipped"] == [
        {"what": f"team a/code/{name}", "reason": reason, "is_fault": False}
        for name, reason in (
            (".env", "looks like a secret"),
            (".git", "git's own folder"),
            ("leaves", "a link that leads out of the folder"),
            ("pipe", "no plain file"),
        )
    ]
    assert "optimizer.pt: pickles run code" in str(code["warnings"])
    names = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt"}
    assert set(api.list_repo_files("admin/team-a-code")) == names | {"stays.txt"}
    assert "checkpoint-10/adapter_model.safetensors" in api.list_repo_files("admin/base")


def test_a_folder_is_imported_again_only_where_it_changed(here: Command, tmp_path: Path, api: HfApi) -> None:
    root = tmp_path / "changing"
    put(root, [*samples.lora("a/base"), AddRegular("old.txt", b"old")])
    (root / "large.bin").write_bytes(os.urandom(3 << 20))
    arguments = ("folder", str(root), "--to", "admin", "--private", "--json")
    first = outcomes(here(*arguments).out)["admin/changing"]
    assert (first["state"], first["commits"]) == ("imported", 1)
    assert api.model_info("admin/changing").private
    assert outcomes(here(*arguments).out)["admin/changing"]["state"] == "unchanged"
    os.utime(root / "large.bin", (1, 1))  # another time, and the same bytes
    touched = outcomes(here(*arguments).out)["admin/changing"]
    assert (touched["state"], touched["commits"]) == ("unchanged", 0)
    (root / "old.txt").rename(root / "new.txt")
    changed = outcomes(here(*arguments).out)["admin/changing"]
    assert (changed["state"], changed["commits"]) == ("imported", 1)
    assert changed["sent_bytes"] == 3
    assert set(api.list_repo_files("admin/changing")) >= {"new.txt", "large.bin", ".gitattributes"}
    assert not api.file_exists("admin/changing", "old.txt")
    back = hf_hub_download("admin/changing", "large.bin", endpoint=api.endpoint, token=api.token, cache_dir=tmp_path)
    assert Path(back).read_bytes() == (root / "large.bin").read_bytes()


def test_names_come_from_cards_and_two_of_one_name_are_told_apart(here: Command, tmp_path: Path, api: HfApi) -> None:
    for folder in ("x", "y"):
        put(tmp_path / "named" / folder, [*samples.lora("a/base"), samples.card(model_name="My: Model")])
    ended = here("folder", str(tmp_path / "named"), "--name-from", "card", "--json")
    states = [(one["repo"], one["state"]) for one in map(json.loads, ended.out.splitlines())]
    assert states == [("admin/My-Model", "imported"), ("admin/My-Model", "failed")]
    assert ended.code == 4


def test_a_folder_with_nothing_known_in_it_is_refused(here: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert here("folder", str(tmp_path / "empty")).code == 3
    (tmp_path / "empty" / "a.txt").write_text("a")
    ended = here("folder", str(tmp_path / "empty"))
    assert ended.code == 3
    assert "skipped a.txt: no patch or model of a known kind lies there" in ended.err
    assert here("folder", str(tmp_path / "nowhere")).code == 3
    assert here("folder").code == 2
    assert here("folder", str(tmp_path / "empty"), "--name-from", "mood").code == 2
