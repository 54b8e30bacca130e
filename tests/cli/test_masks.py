"""`merge masks` on local folders."""

import json
from pathlib import Path

from safetensors.numpy import load_file

from tests.cli.conftest import Command


def test_tasks_are_stored_as_masks_and_had_back(command: Command, folders: Path) -> None:
    names = [word for name in ("base", "code", "licences") for word in ("--input", f"{name}={folders / name}")]
    ended = command("merge", "masks", "base + code + 0.5*licences", str(folders / "out"), *names, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [one["name"] for one in found["tasks"]] == ["code", "licences"]
    assert "lab/out" not in (folders / "out" / "README.md").read_text()
    assert all(0 < one["error"] < 1 and one["scale"] > 0 for one in found["tasks"])
    asked = ["--input", f"base={folders / 'base'}", "--input", f"lab/out/code={folders / 'out'}"]
    again = command("merge", "run", "base + lab/out/code", *asked, "--out", str(folders / "merged"))
    assert again.code == 0, again.err
    before, after = (load_file(folders / name / "model.safetensors") for name in ("base", "merged"))
    moved = sum(float(abs(after[key].astype("f8") - W.astype("f8")).sum()) for key, W in before.items())
    assert abs(moved - found["tasks"][0]["l1"]) < 1e-4 * moved
    shown = command("merge", "masks", "base + code", str(folders / "one"), *names)
    assert "100.0%" in shown.out  # one task alone loses nothing


def test_a_recipe_without_tasks_and_a_folder_that_is_there_are_refused(command: Command, folders: Path) -> None:
    base = ["--input", f"base={folders / 'base'}"]
    assert command("merge", "masks", "base", str(folders / "out"), *base).code == 2
    named = [*base, "--input", f"code={folders / 'code'}"]
    assert command("merge", "masks", "base + code", str(folders / "code"), *named).code == 1
    assert command("merge", "masks", "base + code", str(folders / "out"), "--method", "emt", *named).code == 4
    small = command("merge", "masks", "base + code", str(folders / "out"), *named, "--memory", "320MiB")
    assert (small.code, "0 are left for it beside the process itself" in small.err) == (4, True), small.err
    assert not (folders / "out").exists()


def test_loras_become_experts_of_declared_domains(command: Command, folders: Path) -> None:
    named = ["--expert", f"python={folders / 'code'}", "--expert", f"law={folders / 'licences'}"]
    ended = command("merge", "moe", str(folders / "base"), str(folders / "experts"), *named, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["domains"], found["rank"]) == ({"law": 1, "python": 0}, 3)
    assert json.loads((folders / "experts" / "domains.json").read_text()) == found["domains"]
    asked = ("merge", "moe", str(folders / "base"))
    assert command(*asked, str(folders / "experts"), *named).code == 1
