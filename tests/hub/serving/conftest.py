"""One engine process for the tests that do not harm it, and the tiny models it serves."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.hub.serving.batching import Batch
from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.protocol import Source
from adapterhub.hub.serving.residents import Residents
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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each joint pass had."""
    found: list[int] = []
    advance = Batch.advance

    def counting(self: Batch, rows: Sequence[Any]) -> None:
        found.append(len(rows))
        advance(self, rows)

    monkeypatch.setattr(Batch, "advance", counting)
    return found


@pytest.fixture
def read_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each joint pass read."""
    found: list[int] = []
    original = Batch.read

    def counting(self: Batch, prompts: Sequence[Any]) -> None:
        found.append(len(prompts))
        original(self, prompts)

    monkeypatch.setattr(Batch, "read", counting)
    return found


@pytest.fixture
def residents() -> Residents:
    return Residents(torch.device("cpu"), 1 << 30)
