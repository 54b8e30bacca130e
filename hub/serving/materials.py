"""Recipes as files that another engine reads: one folder each, named by the recipe's digest, in a bounded cache.

A folder appears whole or never and is written once: what lies under a name is what the name says, for ever. A process
of its own (`handover.py`) writes it, as torch is not for this one. Never imports torch.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import structlog

from adapterhub.errors import AdapterHubError
from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving.child import environment
from adapterhub.hub.serving.cores import threads_of
from adapterhub.hub.serving.pool import MOST_REMEMBERED, REMEMBERED_S
from adapterhub.hub.serving.protocol import Json, VariantSpec, error_from_json
from adapterhub.hub.settings import Settings

FACTS = "adapterhub.json"
"""File beside the weights: what they are."""
BASE = "-base"
"""How the name of a base's folder ends."""
UNFINISHED = ".made"
"""How the name of a folder ends that is not whole yet."""
WRITING_S = 3600.0
"""Longest time that writing one result may take."""
ABANDONED_S = 24 * 3600
"""Age at which an unfinished folder belongs to nobody any more."""

_LASTING = (InvalidRequest, TooLarge, UnfitPatch)

_log = structlog.get_logger()

Form = Literal["lora", "model"]


@dataclass(frozen=True)
class Material:
    """What was written for an engine. name: its folder's, and the engine's name for it.

    rank: the largest of a LoRA's modules, 0 for a model. error: ‖Δ - B·A‖/‖Δ‖ of one whose ranks were reduced.
    has_own_template: whether its patches want chats in another way than the base. engine: whose rules a LoRA was held
    against, as in "vllm@0.33.1".
    """

    name: str
    form: Form
    size_bytes: int
    rank: int = 0
    error: float = 0.0
    has_own_template: bool = False
    engine: str = ""

    def write(self, folder: Path) -> None:
        (folder / FACTS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Material | None":
        """What lies in that folder; None where nothing whole does."""
        try:
            return cls(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


def stem(digest: str) -> str:
    """A digest as the name of a folder: engines take no colon."""
    return digest.replace(":", "-")


@dataclass(frozen=True)
class Order:
    """What is to be written: the recipe, where, and what the engine takes. is_base: the base itself, as a model.

    engine: as of a Material; "" where nobody knows.
    """

    spec: VariantSpec
    folder: Path
    max_rank: int
    may_truncate: bool
    may_be_dense: bool
    memory_bytes: int
    threads: int
    is_base: bool = False
    engine: str = ""

    @property
    def lora(self) -> str:
        return stem(self.spec.vid)

    @property
    def truncated(self) -> str:
        return f"{self.lora}-r{self.max_rank}"

    @property
    def model(self) -> str:
        return f"{stem(self.spec.base_digest)}{BASE}" if self.is_base else f"{self.lora}-model"

    def found(self) -> Material | None:
        """What lies there already and the engine takes: an exact LoRA before a truncated one before a model."""
        if not self.is_base:
            for name in (self.lora, self.truncated)[: 1 + self.may_truncate]:
                made = Material.read(self.folder / name)
                if made is not None and made.rank <= self.max_rank and made.engine == self.engine:
                    return made
        return Material.read(self.folder / self.model) if self.may_be_dense else None

    def to_json(self) -> Json:
        """A JSON object that `from_json` turns into an equal order."""
        return {**vars(self), "spec": self.spec.to_json(), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, value: Json) -> "Order":
        return cls(**{**value, "spec": VariantSpec.from_json(value["spec"]), "folder": Path(value["folder"])})


class Materials:
    """The folder of one service. For the one event loop that uses it."""

    def __init__(self, settings: Settings, in_use: Callable[[], set[str]]) -> None:
        """in_use: names that must stay, as the engine may read them again at any time."""
        self._settings = settings
        self._in_use = in_use
        self.folder = settings.handoff_folder
        self._making: dict[str, asyncio.Task[Material]] = {}
        self._refused: dict[str, tuple[float, AdapterHubError]] = {}
        self._one_at_a_time = asyncio.Semaphore(1)

    async def get(self, spec: VariantSpec, *, is_base: bool = False, engine: str = "") -> Material:
        """The recipe as files, written once however many ask at the same time.

        is_base: the base of the recipe as a model; engine: as of an Order. Raises UnfitPatch, InvalidRequest, TooLarge
        for what cannot be written in a form that the engine takes, told again for REMEMBERED_S without another try;
        EngineUnavailable.
        """
        order = self._order(spec, is_base, engine)
        key = order.model if is_base else f"{order.lora} {engine}"
        found = await asyncio.to_thread(order.found)
        if found is None:
            self._check_refused(key)
            making = self._making.get(key)
            if making is None:
                making = self._making[key] = asyncio.create_task(self._make(order, key))
                making.add_done_callback(lambda task: task.cancelled() or task.exception())
            found = await asyncio.shield(making)
        with suppress(FileNotFoundError):
            os.utime(self.folder / found.name / FACTS)
        return found

    async def stop(self) -> None:
        """End what is being written."""
        for task in list(self._making.values()):
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    def sweep(self) -> None:
        """Remove what killed processes left unfinished."""
        for path in self.folder.glob(f"*{UNFINISHED}*"):
            if path.is_dir() and path.stat().st_mtime < time.time() - ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)

    def _order(self, spec: VariantSpec, is_base: bool, engine: str) -> Order:
        given = self._settings
        return Order(
            spec,
            self.folder,
            given.engine_max_rank,
            given.engine_truncate,
            given.engine_dense,
            given.merge_memory_bytes,
            threads_of(given.threads),
            is_base,
            engine,
        )

    async def _make(self, order: Order, key: str) -> Material:
        try:
            async with self._one_at_a_time:
                began = time.monotonic()
                made = await _written(order)
                _log.info("handoff.written", **asdict(made), seconds=round(time.monotonic() - began, 1))
                await asyncio.to_thread(self._make_room, made.name)
                return made
        except _LASTING as error:
            self._refused[key] = (time.monotonic() + REMEMBERED_S, error)
            raise
        finally:
            del self._making[key]

    def _check_refused(self, key: str) -> None:
        now = time.monotonic()
        self._refused = {one: kept for one, kept in list(self._refused.items())[-MOST_REMEMBERED:] if kept[0] > now}
        if key in self._refused:
            error = self._refused[key][1]
            raise type(error)(str(error))

    def _make_room(self, newest: str) -> None:
        """Remove what was longest unused, until the rest is within the limit; never what the engine holds."""
        lying = sorted(self._lying())
        total = sum(size for _, size, _ in lying)
        kept = self._in_use() | {newest}
        for _, size, path in lying:
            if total <= self._settings.engine_folder_bytes:
                return
            if path.name not in kept:
                (path / FACTS).unlink(missing_ok=True)  # first, so that nobody takes half a folder for a whole one
                shutil.rmtree(path, ignore_errors=True)
                total -= size
        if total > self._settings.engine_folder_bytes:
            limit = self._settings.engine_folder_bytes
            _log.warning("handoff.folder_is_full", folder=str(self.folder), size_bytes=total, limit_bytes=limit)

    def _lying(self) -> Iterator[tuple[float, int, Path]]:
        """When each folder was last used, its bytes, and where it is."""
        for facts in self.folder.glob(f"*/{FACTS}"):
            with suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in facts.parent.rglob("*") if file.is_file())
                yield facts.stat().st_mtime, size, facts.parent


async def _written(order: Order) -> Material:
    """What a process of its own wrote. Raises what it refused, and EngineUnavailable when it died."""
    order.folder.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "adapterhub.hub.serving.handover",
        stdin=PIPE,
        stdout=PIPE,
        env=environment(os.environ),
        start_new_session=True,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(json.dumps(order.to_json()).encode()), WRITING_S)
    except TimeoutError:
        raise EngineUnavailable(f"writing the files for the engine took more than {WRITING_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        answer = json.loads(said)
    except ValueError:
        raise EngineUnavailable(
            f"the process that writes files for the engine ended with status {process.returncode}; see the log"
        ) from None
    if "event" in answer:
        raise error_from_json(answer)
    return Material(**answer)
