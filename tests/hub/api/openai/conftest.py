"""The real server with its engine, and tiny models pushed to it by the real client."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from huggingface_hub import HfApi

from tests.clients.server import Server, running
from tests.hub.serving import models


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with an engine, which holds a base, two patches, a patch of another model, and a classifier."""
    folder = tmp_path_factory.mktemp("served")
    models.llama(folder / "base")
    models.lora(folder / "base", folder / "one", seed=1)
    models.lora(folder / "base", folder / "two", seed=2, targets=("o_proj", "down_proj"))
    models.gpt2(folder / "gpt2")
    models.lora(folder / "gpt2", folder / "foreign", seed=3, targets=["c_attn"])
    models.bert_classifier(folder / "bert")
    models.vit_classifier(folder / "vit")
    with running(folder / "data", engine="embedded", device="cpu", threads="1") as server:
        api = HfApi(endpoint=server.url, token=server.token)
        for path in sorted(folder.iterdir()):
            if path.name != "data":
                push(api, path, private=path.name == "two")
        yield server


def push(api: HfApi, folder: Path, *, private: bool = False) -> None:
    """Push a folder as admin/<its name>; a patch says that its base is admin/base."""
    config = folder / "adapter_config.json"
    if config.exists():
        base = str(folder.parent / ("gpt2" if folder.name == "foreign" else "base"))
        config.write_text(config.read_text().replace(base, f"admin/{Path(base).name}"))
        (folder / "README.md").unlink(missing_ok=True)
    repo_id = f"admin/{folder.name}"
    api.create_repo(repo_id, private=private)
    api.upload_folder(repo_id=repo_id, folder_path=folder)


@pytest.fixture(scope="session")
def client(serving: Server) -> Iterator[openai.OpenAI]:
    """The unmodified openai client, which does not try again by itself."""
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=serving.token, max_retries=0) as client:
        yield client


@pytest.fixture
def http(serving: Server) -> Iterator[httpx.Client]:
    """A plain client with the administrator's token."""
    with serving.http() as client:
        yield client


@pytest.fixture
def outsider(serving: Server, http: httpx.Client) -> str:
    """The token of another user."""
    made = http.post("/api/admin/users", json={"name": f"u{secrets.token_hex(4)}"})
    return str(made.json()["token"])
