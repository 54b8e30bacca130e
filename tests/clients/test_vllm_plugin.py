"""The plug-in of examples/vllm_resolver in vLLM's own registry: what needs no GPU."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.clients.server import ROOT, run_client, running
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models

PLUGIN = ROOT / "examples" / "vllm_resolver"


@pytest.mark.slow
def test_vllm_resolves_an_expression_and_reads_its_sum(environment_of: Callable[[str], Path], tmp_path: Path) -> None:
    python = environment_of("vllm")
    models.llama(tmp_path / "base")
    models.gpt2(tmp_path / "gpt2")
    models.lora(tmp_path / "base", tmp_path / "one", seed=1)
    models.lora(tmp_path / "base", tmp_path / "two", seed=2, targets=("q_proj", "o_proj"))
    models.lora(tmp_path / "gpt2", tmp_path / "foreign", seed=3, targets=["c_attn"])
    with running(tmp_path / "data", workers="1", threads="1") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for name in ("base", "gpt2", "one", "two", "foreign"):
            push(api, tmp_path / name)
        names = ["admin/base", "admin/one", "admin/two", "admin/foreign"]
        words = [str(python), "-m", "tests.clients.scenarios_vllm_plugin", "expressions_are_resolved_and_read", *names]
        path = os.pathsep.join([str(PLUGIN), str(ROOT)])
        settings = {"HF_TOKEN": server.token, "PYTHONPATH": path, "VLLM_TARGET_DEVICE": "cpu"}
        run_client(server, tmp_path / "hf", words, **settings)


def test_the_plugin_declares_itself_to_vllm() -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    [(_, entry)] = project["project"]["entry-points"]["vllm.general_plugins"].items()
    module, _, function = entry.partition(":")
    assert f"def {function}()" in (PLUGIN / f"{module}.py").read_text()
    assert project["tool"]["setuptools"]["py-modules"] == [module]
