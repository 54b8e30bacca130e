"""`patch canary` against a live server of ours: the patch, the base under the patch's name, and another patch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.server import Server
from tests.hub.serving import models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's base and one of its patches, made again from their seeds."""
    folder = tmp_path_factory.mktemp("canary")
    models.llama(folder / "base")
    models.lora(folder / "base", folder / "one", seed=1)
    config = json.loads((folder / "one" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "admin/base"
    (folder / "one" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def ask(here: Path, server: Server, model: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """The exit code, the JSON and the messages of a canary."""
    asked = ["--base", here / "base", "--url", f"{server.url}/v1", "--model", model, "--api-key-env", "CANARY_KEY"]
    command = [sys.executable, "-m", "adapterhub.cli", "patch", "canary", here / "one", *asked, "--json", *options]
    environment = os.environ | {"CANARY_KEY": server.token}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_the_patch_is_found_served_with_the_base_that_the_server_names(here: Path, serving: Server) -> None:
    code, found, said = ask(here, serving, "admin/one")
    assert (code, found.get("verdict")) == (0, "served"), said
    assert found["base_model"] == "admin/base"
    assert found["to_patched"] < 1e-4
    assert found["base_to_base"] < 1e-4
    assert found["to_base"] > 0.2
    assert found["effect"] > 0.2
    assert found["matched"] > 0.3  # bytes above 127 are no text of their own


@pytest.mark.parametrize("base_model", ["admin/base", None])
def test_a_server_that_gives_the_base_for_the_patch_is_found_out(
    base_model: str | None, here: Path, serving: Server
) -> None:
    code, found, said = ask(here, serving, "admin/base", *(["--base-model", base_model] if base_model else []))
    assert (code, found.get("verdict")) == (4, "serves the base"), said
    assert found["to_base"] < 1e-4
    assert found["to_patched"] > 0.2
    assert (found["to_its_base"] == 0.0) == (base_model is not None)


def test_a_server_that_gives_another_patch_is_found_out(here: Path, serving: Server) -> None:
    code, found, said = ask(here, serving, "admin/two")
    assert (code, found.get("verdict")) == (4, "serves something else"), said
    assert min(found["to_base"], found["to_patched"]) > 0.1


def test_half_of_a_patch_is_something_else(here: Path, serving: Server) -> None:
    """As an engine serves that scales by alpha / r what asks for another scale."""
    code, found, said = ask(here, serving, "admin/base + 0.5*admin/one", "--base-model", "admin/base")
    assert (code, found.get("verdict")) == (4, "serves something else"), said


def test_another_base_is_no_verdict(here: Path, serving: Server) -> None:
    code, found, said = ask(here, serving, "admin/one", "--base-model", "admin/gpt2")
    assert (code, found.get("verdict")) == (4, "cannot tell"), said
    assert "is not the model in --base" in found["why"]


def test_a_patch_that_changes_too_little_is_no_verdict(here: Path, serving: Server) -> None:
    code, found, said = ask(here, serving, "admin/one", "--tolerance", "50")
    assert (code, found.get("verdict")) == (4, "cannot tell"), said
    assert "less than twice the tolerance" in found["why"]


def test_what_is_no_engine_or_no_name_is_said_in_one_line(here: Path, serving: Server, http: httpx.Client) -> None:
    assert ask(here, serving, "admin/none")[0] == 3
    code, _, said = ask(here, serving, "admin/one", "--url", f"{serving.url}/nothing")
    assert code == 3
    assert "/nothing/models" in said
    code, _, said = ask(here, serving, "admin/one", "--url", "http://127.0.0.1:9/v1")
    assert code == 1
    assert "is the engine running" in said
    code, _, said = ask(here, serving, "admin/one", "--api-key-env", "NO_SUCH_VARIABLE")
    assert code == 2
    assert "NO_SUCH_VARIABLE: that variable is not set" in said
