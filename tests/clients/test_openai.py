"""Libraries on top of OpenAI's dialect, unmodified, in an environment of their own, against a server with an engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tests.clients.conftest import scenario_runner
from tests.clients.server import Server, running
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with the chat template of one that knows tools, and a patch of it."""
    folder = tmp_path_factory.mktemp("openai")
    models.llama(folder / "chat", context=4096, template=models.chat_template("qwen2_5"))
    models.lora(folder / "chat", folder / "style", seed=1)
    config = folder / "style" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(folder / "chat"), "admin/chat"))
    with running(folder / "data", engine="embedded", device="cpu", threads="1") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for name in ("chat", "style"):
            push(api, folder / name)
        yield server


@pytest.mark.parametrize("library", ["langchain", "litellm", "llm", "inference_client"])
def test_the_library_chats_streams_embeds_and_calls_tools(
    request: pytest.FixtureRequest, environment_of: Callable[[str], Path], tmp_path: Path, library: str
) -> None:
    python = environment_of("openai")
    server = request.getfixturevalue("serving")  # not before it is known that there is such an environment
    run: Any = scenario_runner(server, tmp_path / "hf", python)
    run(library, module="tests.clients.scenarios_openai", LITELLM_LOCAL_MODEL_COST_MAP="True")
