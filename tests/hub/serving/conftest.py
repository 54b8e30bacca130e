"""One engine process for the tests that do not harm it, and the tiny models it serves."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.protocol import Source
from adapterhub.hub.settings import Settings
from tests.hub.serving import models


class EngineOnALoop:
    """An engine's client and the event loop that it lives in."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()

    def run(self, work: Any) -> Any:
        """What a coroutine returns."""
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self.client.stop())
        self.loop.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[EngineOnALoop]:
    """The embedded engine on the CPU, in a process of its own."""
    found = EngineOnALoop(EngineClient(Settings(device="cpu", threads=1, pool_bytes=1 << 30)))
    yield found
    found.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models."""
    root = tmp_path_factory.mktemp("models")
    models.llama(root / "llama")
    models.lora(root / "llama", root / "one", seed=1)
    models.lora(root / "llama", root / "two", seed=2, targets=("o_proj", "down_proj"))
    return root


@pytest.fixture(scope="session")
def base(folder: Path) -> Source:
    return models.source("demo/base", folder / "llama")


@pytest.fixture(scope="session")
def one(folder: Path) -> Source:
    return models.source("demo/one", folder / "one", "lora")


@pytest.fixture(scope="session")
def two(folder: Path) -> Source:
    return models.source("demo/two", folder / "two", "lora")
