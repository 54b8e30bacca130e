"""The snippets of docs/clients.md run as they stand, and leave what they say on the hub."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.clients.conftest import Run
from tests.clients.server import Server

pytestmark = pytest.mark.slow

MODULE = "tests.clients.scenarios_page"


@pytest.mark.parametrize(
    ("section", "pushed", "printed"),
    [
        ("transformers", ["copy"], "Once upon a time"),
        ("peft", ["my-lora"], "['second']"),
        pytest.param("sentence_transformers", ["my-encoder"], "(1, 384)"),
        pytest.param("trl", ["sft"], "train_loss"),
        pytest.param("diffusers", ["my-pipeline"], "(16, 16)"),
        pytest.param("adapters", ["my-adapter"], "my-adapter']"),
    ],
)
def test_the_snippet_runs(
    server: Server,
    run_scenario: Run,
    environment_of: Callable[[str], Path],
    repo_id: str,
    section: str,
    pushed: list[str],
    printed: str,
) -> None:
    apart = {"python": environment_of("adapters")} if section == "adapters" else {}
    done = run_scenario(section, f"{repo_id}-", module=MODULE, **apart)
    assert printed in done.stdout
    api = HfApi(endpoint=server.url, token=server.token)
    for name in pushed:
        assert api.model_info(f"{repo_id}-{name}").siblings
