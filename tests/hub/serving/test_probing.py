"""Bases in memory are looked at in the engine's process, and what is wrong is told, of engines made to fail."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapterhub.hub.errors import EngineUnavailable
from adapterhub.hub.serving import client as clients
from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.probing import EVERY_S, Probing
from adapterhub.hub.serving.protocol import Source
from adapterhub.hub.settings import Settings
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.hub.serving.test_resident import resident


class Harmed(EngineClient):
    """An engine whose process runs `HARM` before it begins."""

    harm = ""

    def command(self, fd: int) -> Sequence[str]:
        module, *arguments = super().command(fd)[2:]
        begin = f"{self.harm}\nimport sys\nfrom {module} import main\nmain(sys.argv[1:])"
        return [sys.executable, "-c", begin, *arguments]


WEIGHTS_CHANGE = """
from adapterhub.hub.serving import resident
leave = resident.Base._leave
def harmed(self):
    leave(self)
    list(self._pristine.values())[3].add_(1)
resident.Base._leave = harmed
"""
CANNOT_COMPUTE = """
import transformers
def harmed(self, *given, **more):
    raise RuntimeError("the device is gone")
transformers.LlamaForCausalLM.__call__ = harmed
"""
HANGS = """
import time
from adapterhub.hub.serving.scheduler import Scheduler
Scheduler._run = lambda self: time.sleep(1000)
"""


def harmed(harm: str) -> EngineOnALoop:
    engine = Harmed(Settings(device="cpu", threads=1, pool_bytes=1 << 30))
    engine.harm = harm
    return EngineOnALoop(engine)


async def started(client: EngineClient) -> int:
    await client.state()
    return await client.probe()


def bases_of(engine: EngineOnALoop) -> dict[str, int]:
    """How many hold each base in memory, by its digest."""
    resident = engine.run(engine.client.state())["resident"]
    return {held["digest"]: held["pins"] for held in resident if held["kind"] == "base"}


def test_all_bases_in_memory_are_looked_at(engine: EngineOnALoop, tmp_path: Path, base: Source, one: Source) -> None:
    vit = models.source("demo/vit", models.vit_classifier(tmp_path / "vit"))  # it generates nothing
    specs = models.spec("demo/base + 0.11*demo/one", base, one), models.spec("demo/vit", vit)
    for spec in specs:
        engine.run(engine.client.load(spec))
    before = bases_of(engine)  # variants of other tests may hold one too
    assert {spec.base_digest for spec in specs} <= before.keys()
    assert engine.run(started(engine.client)) == len(before)
    for _ in range(100):  # the engine lets go of a base just after it has answered
        if all(pins <= before[digest] for digest, pins in bases_of(engine).items()):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the look has left a pin behind")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "told"),
    [(WEIGHTS_CHANGE, "not what was loaded"), (CANNOT_COMPUTE, "RuntimeError"), (HANGS, "within 2 s")],
)
def test_an_engine_that_came_to_harm_is_not_ready(
    harm: str, told: str, base: Source, one: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = harmed(harm)
    try:
        loading = engine.loop.create_task(engine.client.load(models.spec("demo/base + demo/one", base, one)))
        engine.run(asyncio.wait_for(made(engine.client, "variant"), 120))
        if harm == HANGS:
            monkeypatch.setattr(clients, "PROBE_S", 2.0)
        else:
            engine.run(loading)
        with pytest.raises(EngineUnavailable, match=told):
            engine.run(engine.client.probe())
        loading.cancel()
    finally:
        engine.close()


async def made(client: EngineClient, kind: str) -> None:
    """Returns once something of that kind is in the engine's memory."""
    while not any(one["kind"] == kind for one in (await client.state())["resident"]):
        await asyncio.sleep(0.1)


def test_an_engine_that_is_not_there_is_not_ready() -> None:
    engine = EngineClient(Settings(device="cpu", threads=1))
    with pytest.raises(EngineUnavailable, match="starting"):
        asyncio.run(engine.probe())


def test_a_changed_weight_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    base = resident(models.llama(tmp_path / "base", tied=True))
    seen = [base.is_pristine]
    base.apply(base.variant("v", {name: tensor + 1 for name, tensor in base.tensors().items()}))
    seen.append(base.is_pristine)
    base.apply(None)
    for tensor in base.tensors().values():
        kept = tensor.clone()
        tensor.add_(0.5)
        seen.append(not base.is_pristine)
        tensor.copy_(kept)
        seen.append(base.is_pristine)
    assert len(seen) == 2 + 2 * len(base.tensors())
    assert all(seen)


class Looks:
    """Counts how often it is asked to look, and waits for `go`."""

    def __init__(self) -> None:
        self.count = 0
        self.go = asyncio.Event()
        self.now = 0.0

    async def look(self) -> int:
        self.count += 1
        await self.go.wait()
        if self.count == 2:
            raise EngineUnavailable("broken")
        return self.count


def test_one_look_is_for_all_who_ask_within_ten_seconds() -> None:
    async def story() -> None:
        looks = Looks()
        probing = Probing(looks.look, clock=lambda: looks.now)
        asking = [asyncio.ensure_future(probing.outcome()) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()  # who hangs up takes nobody's answer away
        looks.now = 100.0
        looks.go.set()
        assert await asyncio.gather(*asking[1:]) == [1, 1, 1, 1]
        looks.now += EVERY_S - 1
        assert await probing.outcome() == 1
        looks.now += 1
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match="broken"):
                await probing.outcome()
        looks.now += EVERY_S
        assert await probing.outcome() == looks.count == 3

    asyncio.run(story())
