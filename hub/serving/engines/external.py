"""The engine `external`: a vLLM or SGLang server, handed what it is to serve as files and asked over HTTP.

What comes to one LoRA is loaded as an adapter under its digest, several at a time; what does not takes the place of
the server's own weights, where the operator allows that, one at a time and never while another is computed. Names are
digests, so nothing that the server keeps by name, an adapter or a cached prefix, can be of other weights. Never imports
torch.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

import structlog

from adapterhub import __version__
from adapterhub.errors import AdapterHubError
from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, Overloaded
from adapterhub.hub.serving import remote_answers
from adapterhub.hub.serving.materials import BASE, Material, Materials
from adapterhub.hub.serving.pool import Counts
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, Answer, Event, Generate, Json, Task, VariantSpec
from adapterhub.hub.serving.remote import (
    FIRST_ANSWER_S,
    AdapterLost,
    Dialect,
    Facts,
    Refusal,
    Remote,
    dialect,
    message_of,
    refused,
)
from adapterhub.hub.serving.weights import OWN, Weights
from adapterhub.hub.settings import Settings
from adapterhub.merging.folders import join, read_json

LOOK_S = 5.0
"""Seconds between two looks whether the server is there."""
QUEUE_LIMIT = 256
"""Requests in flight; one more is refused with Overloaded."""

_OURS = "sha256-"
"""How the names begin that this service gives."""

_log = structlog.get_logger()


@dataclass
class _Held:
    """An adapter in the server. users: requests that use it now; ready: done once it is loaded."""

    label: str
    digest: str
    size_bytes: int
    users: int = 0
    pinned: bool = False
    ready: "asyncio.Task[None] | None" = None


@dataclass
class _Counts(Counts):
    """Of adapters as of a pool's entries; swaps: how often the server was given other weights."""

    swaps: int = 0


@dataclass
class _Connected:
    """A server that answered, as it was then."""

    server: Dialect
    facts: Facts


class ExternalEngine:
    """An `Engine` at ADAPTERHUB_ENGINE_URL; `start` and `stop` belong to the one event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._remote = Remote(settings)
        self._materials = Materials(settings, self._names_in_use)
        self._weights = Weights()
        self._dense: _Held | None = None
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._pinned: dict[str, VariantSpec] = {}
        self._base: VariantSpec | None = None
        self._counts = _Counts()
        self._connected: _Connected | None = None
        self._connecting = asyncio.Lock()
        self._server = ""
        self._looking: asyncio.Task[None] | None = None
        self._in_flight = 0

    @property
    def is_ready(self) -> bool:
        """Whether the server answered when it was last asked."""
        return self._connected is not None

    async def start(self) -> None:
        """Look for the server now and then; returns at once. May be called repeatedly."""
        if self._looking is None:
            await asyncio.to_thread(self._materials.sweep)
            self._looking = asyncio.create_task(self._look(), name="engine")

    async def stop(self) -> None:
        """Leave the server alone, and end what is being written for it. May be called repeatedly."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])
        await self._materials.stop()
        await self._remote.close()

    async def load(self, spec: VariantSpec, *, pinned: bool = False) -> Json:
        if pinned:
            self._pinned[spec.vid] = spec  # also where the server is not there yet: it is loaded once it is
        with self._admitted():
            material = await self._material(spec)
            if pinned and material is not None and material.form == "model":
                del self._pinned[spec.vid]
                raise InvalidRequest(
                    f"{spec.label}: becomes a merged model, of which an external engine holds one at a time; it cannot "
                    "be kept in it"
                )
            async with self._placed(spec, material):
                size_bytes = 0 if material is None else material.size_bytes
                return {"event": "loaded", "execution_id": self._execution_id(spec, material), "size_bytes": size_bytes}

    async def generate(self, spec: VariantSpec, request: Generate) -> AsyncGenerator[Event, None]:
        began = time.monotonic()
        with self._admitted():
            material = await self._material(spec)
            asked = await asyncio.to_thread(_as_served, spec, material, request)
            for is_last in (False, True):
                has_begun = False
                try:
                    async with self._placed(spec, material) as (server, addressed):
                        body = remote_answers.body(asked, addressed)
                        ready_ms = 1000 * (time.monotonic() - began)
                        async with aclosing(self._answers(server, spec, material, asked, body, ready_ms)) as answers:
                            async for event in answers:
                                has_begun = True
                                yield event
                    return
                except AdapterLost as error:
                    self._forget(material)
                    if is_last or has_begun:
                        raise EngineUnavailable(f"the engine lost the adapter while it was used: {error}") from error

    async def task(self, spec: VariantSpec, request: Task) -> Answer:
        remote_answers.embedding_body(request, {})
        with self._admitted():
            material = await self._material(spec)
            try:
                return await self._vectors(spec, material, request)
            except AdapterLost:
                self._forget(material)
            try:
                return await self._vectors(spec, material, request)
            except AdapterLost as error:
                raise EngineUnavailable(f"the engine lost the adapter while it was used: {error}") from error

    async def probe(self) -> int:
        """1 where the server answers and has a base whose weights are told; see `EngineHandle.probe`."""
        found = await self._ensure_connected()
        await found.server.facts()
        return int(self._base is not None)

    async def state(self) -> Json:
        found = await self._ensure_connected()
        entries = [self._entry("variant", one) for one in self._held.values() if one.ready is None or one.ready.done()]
        if self._dense is not None and self._weights.current not in (OWN, None):
            entries.append(self._entry("variant", self._dense))
        if self._base is not None:
            own = _Held(self._base.base.name, self._base.base_digest, 0)
            entries.append(self._entry("base", own))
        return {
            "device": "external",
            "server": found.server.kind,
            "version": found.facts.version,
            "in_flight": self._in_flight,
            "limit_bytes": self.settings.engine_folder_bytes,
            "used_bytes": sum(one["size_bytes"] for one in entries),
            "weights": self._weights.current,
            "switches": self._counts.swaps,
            "waiting": 0,
            "resident": entries,
            **vars(self._counts),
        }

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Counts a request in flight, and has the server looked at anew where it failed. Raises Overloaded."""
        if self._in_flight >= QUEUE_LIMIT:
            raise Overloaded(f"{QUEUE_LIMIT} requests are in flight; try again in a few seconds")
        self._in_flight += 1
        try:
            yield
        except EngineUnavailable as error:
            self._lose(error)
            raise
        finally:
            self._in_flight -= 1

    # ---- the server --------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Connect, notice when the server is gone or is another one, and put what is pinned into it again."""
        served: _Connected | None = None
        while True:
            try:
                found = await self._ensure_connected()
                status, _ = await self._remote.ask("GET", "/health")
                if status != 200:
                    raise EngineUnavailable(f"the engine's /health answers {status}")
                if served is not found:
                    await self._load_pinned()
                    served = found
            except AdapterHubError as error:
                self._lose(error)
            await asyncio.sleep(LOOK_S)

    async def _load_pinned(self) -> None:
        for spec in list(self._pinned.values()):
            try:
                await self.load(spec, pinned=True)
            except AdapterHubError as error:
                _log.error("engine.pinned_failed", name=spec.label, error=str(error))

    async def _ensure_connected(self) -> _Connected:
        """The server as it is now. Raises EngineUnavailable."""
        async with self._connecting:
            if self._connected is None:
                server = await dialect(self._remote, self.settings.engine_kind)
                facts = await server.facts()
                self._adopt(facts)
                self._server = f"{server.kind} {facts.version}"
                self._connected = _Connected(server, facts)
                _log.info("engine.connected", kind=server.kind, version=facts.version, serves=facts.served)
            return self._connected

    def _adopt(self, facts: Facts) -> None:
        """Take over what is in the server from before this connection: names are digests, so it is what they say."""
        for name in [name for name, one in self._held.items() if not one.users and name not in facts.adapters]:
            del self._held[name]
        for name in sorted(facts.adapters):
            if name.startswith(_OURS) and name not in self._held:
                self._held[name] = _Held(name, name, 0)
        label = facts.weights or ""
        is_variant = label.startswith(_OURS) and not label.endswith(BASE)
        if not self._server or self._weights.current is not None:  # else a swap failed, and the label says nothing
            self._weights.current = label if is_variant else OWN

    def _lose(self, error: AdapterHubError) -> None:
        if self._connected is not None:
            _log.warning("engine.lost", error=str(error))
        self._connected = None

    def _meant(self, server: Dialect, material: Material | None, status: int, message: str) -> AdapterHubError:
        """What a refusal of the server means for who asked."""
        adapter = material.name if material is not None and material.form == "lora" else None
        if server.is_lost(status, message, adapter):
            return AdapterLost(message)
        return refused(status, message)

    # ---- what is asked -----------------------------------------------------------------------------------------------

    async def _answers(
        self,
        server: Dialect,
        spec: VariantSpec,
        material: Material | None,
        asked: Generate,
        body: Json,
        ready_ms: float,
    ) -> AsyncGenerator[Event, None]:
        execution_id = self._execution_id(spec, material)
        try:
            async with self._remote.streamed(remote_answers.route(asked), body) as chunks:
                async for event in remote_answers.events(chunks, asked, execution_id, ready_ms):
                    yield event
        except Refusal as refusal:
            raise self._meant(server, material, refusal.status, refusal.message) from refusal

    async def _vectors(self, spec: VariantSpec, material: Material | None, request: Task) -> Answer:
        async with self._placed(spec, material) as (server, addressed):
            body = remote_answers.embedding_body(request, addressed)
            status, answer = await self._remote.ask("POST", "/v1/embeddings", body=body, timeout_s=FIRST_ANSWER_S)
            if status != 200:
                raise self._meant(server, material, status, message_of(answer))
            return Answer(remote_answers.vectors(answer), self._execution_id(spec, material))

    async def _material(self, spec: VariantSpec) -> Material | None:
        """The recipe as files, None for the base alone. Raises as `_check_base` and `Materials.get`, InvalidRequest for
        several models that are composed."""
        if spec.composition is not None:
            raise InvalidRequest(
                f"{spec.composition.operator}(...) composes models at each token; an external engine answers for one: "
                "ask the embedded engine"
            )
        found = await self._ensure_connected()
        self._check_base(spec, found.facts)
        engine = f"{found.server.kind}@{found.facts.version}"
        return None if spec.is_base_alone else await self._materials.get(spec, engine=engine)

    def _check_base(self, spec: VariantSpec, facts: Facts) -> None:
        """Raises InvalidRequest for another base than the server's, as far as names and a commit tell.

        Where no commit is said, the base that is asked for first is taken for the server's, and no other after it.
        """
        repository, _, commit = spec.base.name.partition("@")
        wanted = self.settings.engine_base
        if wanted is None:
            is_served = repository in facts.also_called
        else:
            name, _, pinned = wanted.partition("@")
            is_served = name == repository and pinned in ("", commit)
        if not is_served or spec.base.path:
            serves = wanted or facts.served
            raise InvalidRequest(
                f"{spec.base.name}: the external engine serves {serves}; ask for what is made of that base, or say in "
                "ADAPTERHUB_ENGINE_BASE which repository the server was started with"
            )
        first = self._base = self._base or spec
        if first.base_digest != spec.base_digest:
            raise InvalidRequest(
                f"{spec.base.name}: the external engine serves one base, and was asked for {first.base.name} before, "
                "which has other files; start it and this service with the one that is meant, and say NAME@COMMIT in "
                "ADAPTERHUB_ENGINE_BASE"
            )

    def _execution_id(self, spec: VariantSpec, material: Material | None) -> str:
        """Names what computed what; a LoRA whose ranks were reduced is another than the exact one."""
        form = "own" if material is None else f"{material.form} {material.name}"
        parts = (spec.vid, __version__, self._server, form)
        return "ah-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    # ---- what is in the server ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _placed(self, spec: VariantSpec, material: Material | None) -> AsyncIterator[tuple[Dialect, Json]]:
        """While this is entered the server has what was asked for: the fields of a request that choose it."""
        found = await self._ensure_connected()
        dense = material if material is not None and material.form == "model" else None
        wanted = OWN if dense is None else dense.name

        async def has() -> bool:
            # weights that were put in are gone when the server was started again, which nobody else would notice
            return dense is None or await found.server.weights() == wanted

        async with self._weights.using(wanted, has, lambda: self._swap(found.server, spec, dense)):
            if material is None or dense is not None:
                yield found.server, found.server.addressed(found.facts.served, None)
                return
            held = await self._loaded(found.server, spec, material)
            try:
                yield found.server, found.server.addressed(found.facts.served, material.name)
            finally:
                held.users -= 1

    async def _swap(self, server: Dialect, spec: VariantSpec, dense: Material | None) -> None:
        """Put a merged model, or the base, into the server. Raises UnfitPatch, EngineUnavailable, InvalidRequest."""
        if not self.settings.engine_dense:
            raise EngineUnavailable(
                "the engine holds weights of a variant, and ADAPTERHUB_ENGINE_DENSE does not allow to change them; "
                "start it again"
            )
        if await server.weights() is None:
            raise InvalidRequest(
                "this engine does not tell which weights it has (vLLM: GET /weight_info, from 0.33 with "
                "VLLM_SERVER_DEV_MODE=1; SGLang: weight_version in /model_info), so it might answer with others than "
                "were asked for; only LoRAs are served with it"
            )
        chosen = dense or await self._materials.get(spec, is_base=True)
        self._dense = None
        began = time.monotonic()
        await server.swap(chosen.name, self._path(chosen))
        if dense is not None:
            self._dense = _Held(spec.label, spec.vid, chosen.size_bytes)
        self._counts.swaps += 1
        _log.info("engine.swapped", name=chosen.name, seconds=round(time.monotonic() - began, 2))

    async def _loaded(self, server: Dialect, spec: VariantSpec, material: Material) -> _Held:
        """The adapter in the server, with one user more. Raises Overloaded, UnfitPatch, EngineUnavailable."""
        held = self._held.get(material.name)
        if held is None:
            await self._evict(server)
            held = self._held.get(material.name)  # somebody else may have come first
        if held is None:
            held = self._held[material.name] = _Held(spec.label, spec.vid, material.size_bytes)
            held.ready = asyncio.create_task(self._load(server, material))
            held.ready.add_done_callback(lambda task: task.cancelled() or task.exception())
        else:
            self._counts.hits += 1
            held.label, held.digest, held.size_bytes = spec.label, spec.vid, material.size_bytes
        held.pinned = spec.vid in self._pinned
        self._held.move_to_end(material.name)
        held.users += 1
        try:
            if held.ready is not None:
                await asyncio.shield(held.ready)
        except BaseException:
            held.users -= 1
            raise
        return held

    async def _load(self, server: Dialect, material: Material) -> None:
        try:
            await server.load(material.name, self._path(material))
        except BaseException:
            self._forget(material)
            raise
        self._counts.loads += 1

    async def _evict(self, server: Dialect) -> None:
        """Make place for one adapter. Raises Overloaded where all are in use or are to stay."""
        while len(self._held) >= self.settings.engine_max_loras:
            free = next((name for name, one in self._held.items() if not one.users and not one.pinned), None)
            if free is None:
                raise Overloaded(
                    f"all {len(self._held)} adapters that the engine may hold are in use (ADAPTERHUB_ENGINE_MAX_LORAS);"
                    " try again in a few seconds"
                )
            del self._held[free]
            self._counts.evictions += 1
            await server.unload(free)

    def _forget(self, material: Material | None) -> None:
        if material is not None:
            self._held.pop(material.name, None)

    def _path(self, material: Material) -> str:
        """Where the server sees the files."""
        mount = self.settings.engine_mount
        return str(self._materials.folder / material.name) if mount is None else join(mount.rstrip("/"), material.name)

    def _names_in_use(self) -> set[str]:
        current = self._weights.current
        return set(self._held) | ({current} if current else set())

    def _entry(self, kind: str, one: _Held) -> Json:
        pins = one.users + one.pinned
        return {"kind": kind, "digest": one.digest, "name": one.label, "size_bytes": one.size_bytes, "pins": pins}


def _as_served(spec: VariantSpec, material: Material | None, request: Generate) -> Generate:
    """The request as the server answers it like the embedded engine. Raises InvalidRequest where it would not.

    A model without a chat template continues the messages' text, which a server refuses to do by itself.
    """
    if request.tools:
        raise InvalidRequest("tools: an external engine is not asked for calls; ask the embedded engine")
    way = RUN_TIME if material is not None and material.form == "lora" else MERGED
    if material is not None and request.execution not in (None, way):
        raise InvalidRequest(f"{spec.label}: the external engine computes it {way} alone; leave execution out")
    if request.messages is None:
        return request
    if material is not None and material.has_own_template:
        raise InvalidRequest(
            f"{spec.label}: brings a chat template of its own, and an external engine uses its base's; ask for "
            "completions of the text, or serve it with the embedded engine"
        )
    if _has_template(spec):
        return request
    text = "\n\n".join(str(message["content"]) for message in request.messages)
    return replace(request, messages=None, prompt=text)


def _has_template(spec: VariantSpec) -> bool:
    folder, path = spec.base.folder, spec.base.path
    names = folder.names()
    if join(path, "chat_template.jinja") in names:
        return True
    file = join(path, "tokenizer_config.json")
    with suppress(AdapterHubError):
        return file in names and bool(read_json(folder, file).get("chat_template"))
    return False
