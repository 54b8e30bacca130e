"""A vLLM or SGLang server over HTTP: what it is, what it has loaded, and how adapters and weights are put into it.

Redirects are not followed: the address is the operator's, and what stands there must answer itself.
Source: vLLM 0.33 `entrypoints/serve/lora`, `serve/dev/{sleep,rpc,cache}`, `rl/online`; SGLang `entrypoints/
http_server.py`, `managers/io_struct.py`, docs/advanced_features/{lora,sglang_for_rl}.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from adapterhub.hub.errors import EngineUnavailable, HubError, InvalidRequest, Overloaded, TooLarge, UnfitPatch
from adapterhub.hub.serving.protocol import Json
from adapterhub.hub.settings import Settings

CONNECT_S = 5.0
ASK_S = 30.0
"""Seconds for an answer to a question about the server."""
LOAD_S = 600.0
"""Seconds for it to read an adapter or a model."""
FIRST_ANSWER_S = 300.0
"""Seconds between two pieces of an answer, and to the first."""
MAX_ERROR_BYTES = 1 << 16
UNFINISHED = "sha256-unfinished"
"""The label of weights while they are changed."""
MOST_CONNECTIONS = 512


class AdapterLost(HubError):
    """The server does not have the adapter any more, as after it was started again. Never leaves the engine."""


@dataclass(frozen=True)
class Facts:
    """What a server says of itself.

    served: its name for its own weights; also_called: its other names for them. adapters: those that are loaded.
    weights: the label of the weights in it, None where it does not tell.
    """

    version: str
    served: str
    also_called: frozenset[str]
    adapters: frozenset[str]
    weights: str | None


class Dialect(Protocol):
    """One kind of server."""

    kind: str

    async def facts(self) -> Facts:
        """What the server says of itself. Raises EngineUnavailable."""

    async def weights(self) -> str | None:
        """The label that `swap` gave to the weights in it, another where it never did, None if it has no labels."""

    async def load(self, name: str, path: str) -> None:
        """Load an adapter; one of that name that is there already is the same. Raises UnfitPatch, EngineUnavailable."""

    async def unload(self, name: str) -> None:
        """Forget an adapter; one that is not there is forgotten."""

    async def swap(self, label: str, path: str) -> None:
        """Put other weights in the place of its own, with nothing left of what was computed by those before.

        Nothing may run meanwhile. Raises UnfitPatch, EngineUnavailable; what is in it is then unknown.
        """

    def addressed(self, served: str, adapter: str | None) -> Json:
        """The fields of a request that choose the adapter, or the server's own weights."""

    def is_lost(self, status: int, message: str, adapter: str | None) -> bool:
        """Whether a refusal says that the adapter is not there."""


class Remote:
    """The connection to one server, and what its refusals mean."""

    def __init__(self, settings: Settings) -> None:
        key = settings.engine_api_key
        self.http = httpx.AsyncClient(
            base_url=str(settings.engine_url).rstrip("/"),
            headers={} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"},
            timeout=httpx.Timeout(ASK_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=64),
            follow_redirects=False,
            trust_env=False,
        )

    async def ask(
        self, method: str, path: str, *, body: Json | None = None, timeout_s: float = ASK_S
    ) -> tuple[int, Any]:
        """Status and JSON of a reply, None for one that is none. Raises EngineUnavailable where none comes."""
        try:
            timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
            reply = await self.http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        if reply.status_code in (401, 403):
            raise refused(reply.status_code, "")
        return reply.status_code, _json(reply.content)

    async def done(
        self, path: str, *, body: Json | None = None, timeout_s: float = LOAD_S, what: str = "start one that has"
    ) -> Any:
        """The JSON of a reply to a command that worked. what: to do where the server has no such command.

        Raises UnfitPatch where it did not work, EngineUnavailable.
        """
        status, answer = await self.ask("POST", path, body=body, timeout_s=timeout_s)
        if status == 404 and message_of(answer) in ("Not Found", "null"):
            raise EngineUnavailable(f"the engine has no {path.partition('?')[0]}; {what}")
        if status >= 300:
            raise UnfitPatch(f"the engine refuses {path.partition('?')[0]} ({status}): {message_of(answer)}")
        return answer

    @asynccontextmanager
    async def streamed(self, path: str, body: Json) -> AsyncIterator[AsyncIterator[Json]]:
        """The server-sent events of a reply, to "[DONE]"; leaving closes the connection, on which the server stops.

        Raises `Refusal` for a reply that is none, EngineUnavailable where it breaks off.
        """
        try:
            timeout = httpx.Timeout(FIRST_ANSWER_S, connect=CONNECT_S)
            async with self.http.stream("POST", path, json=body, timeout=timeout) as reply:
                if reply.status_code != 200:
                    raise Refusal(reply.status_code, message_of(_json(await _head(reply))))
                yield _events(reply)
        except httpx.HTTPError as error:
            raise unreachable(error) from error

    async def close(self) -> None:
        await self.http.aclose()


class Refusal(Exception):
    """A reply that is no answer: its status, and what it says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def refused(status: int, message: str) -> HubError:
    """What the service says where the server answers a request so."""
    if status in (401, 403):
        return EngineUnavailable(f"the engine refuses this service's key ({status}); set ADAPTERHUB_ENGINE_API_KEY")
    if status in (429, 503):
        return Overloaded(f"the engine is busy ({status}); try again in a few seconds")
    if 300 <= status < 400:
        return EngineUnavailable(f"the engine answers with a redirect ({status}), which is not followed; mend its URL")
    if status == 413:
        return TooLarge(f"the engine: {message}")
    if status >= 500:
        return EngineUnavailable(f"the engine failed ({status}): {message}")
    return InvalidRequest(f"the engine refuses the request: {message}")


def unreachable(error: httpx.HTTPError) -> EngineUnavailable:
    """What is said of a connection that failed."""
    said = str(error) or type(error).__name__
    return EngineUnavailable(f"the external engine does not answer: {said[:200]}")


def message_of(answer: Any) -> str:
    """What a reply says went wrong, in any of the shapes that servers use."""
    found = answer
    for key in ("error", "error_message", "message", "detail"):
        if isinstance(found, Mapping) and key in found and found[key]:
            found = found[key]
    text = found if isinstance(found, str) else json.dumps(found)
    return " ".join(text.split())[:500]


class Vllm:
    """Source: vLLM 0.33. Needs VLLM_ALLOW_RUNTIME_LORA_UPDATING for adapters, VLLM_SERVER_DEV_MODE for weights."""

    kind = "vllm"

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def facts(self) -> Facts:
        _, said = await self._remote.ask("GET", "/version")
        version = str(said.get("version", "")) if isinstance(said, Mapping) else ""
        cards = await _cards(self._remote)
        served = [card for card in cards if not card.get("parent")]
        if not served:
            raise EngineUnavailable("the engine lists no model of its own under /v1/models")
        names = frozenset(str(card[key]) for card in served for key in ("id", "root") if card.get(key))
        adapters = frozenset(str(card["id"]) for card in cards if card.get("parent"))
        return Facts(version, str(served[0]["id"]), names, adapters, await self.weights())

    async def weights(self) -> str | None:
        status, answer = await self._remote.ask("GET", "/weight_info")
        return str(answer.get("weight_version")) if status == 200 and isinstance(answer, Mapping) else None

    async def load(self, name: str, path: str) -> None:
        body = {"lora_name": name, "lora_path": path}
        await _load(self._remote, "/v1/load_lora_adapter", body, "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")

    async def unload(self, name: str) -> None:
        await self._remote.ask("POST", "/v1/unload_lora_adapter", body={"lora_name": name})

    async def swap(self, label: str, path: str) -> None:
        """The level-2 sleep of docs/features/sleep_mode: weights and KV cache go, weights come from the path."""
        needs = "start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode"
        await self._label(UNFINISHED)  # whoever comes after a swap that broke off must not take this for the weights
        _, sleeping = await self._remote.ask("GET", "/is_sleeping")
        if not (isinstance(sleeping, Mapping) and sleeping.get("is_sleeping")):
            await self._remote.done("/sleep?level=2", what=needs)
        await self._remote.done("/wake_up?tags=weights", what=needs)
        reload: Json = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        await self._remote.done("/collective_rpc", body=reload, what=needs)
        await self._remote.done("/wake_up?tags=kv_cache", what=needs)
        answer = await self._remote.done("/reset_prefix_cache", what=needs)
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise EngineUnavailable("the engine did not empty its prefix cache, so old answers might come back")
        await self._label(label)

    async def _label(self, label: str) -> None:
        await self._remote.done("/update_weight_version", body={"new_version": label}, what="vLLM has it from 0.33")

    def addressed(self, served: str, adapter: str | None) -> Json:
        return {"model": adapter or served}

    def is_lost(self, status: int, message: str, adapter: str | None) -> bool:
        return adapter is not None and status == 404 and adapter in message


class Sglang:
    """Source: SGLang 0.5. An adapter is named beside the model: older servers ignore `model`, none ignores this."""

    kind = "sglang"

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def facts(self) -> Facts:
        info = await self._info()
        status, server = await self._remote.ask("GET", "/server_info")
        if status != 200:
            _, server = await self._remote.ask("GET", "/get_server_info")
        said = server if isinstance(server, Mapping) else {}
        cards = await _cards(self._remote)
        served = [str(card["id"]) for card in cards if not card.get("parent")]
        names = {*served, said.get("served_model_name"), said.get("model_path"), info.get("model_path")}
        adapters = frozenset(str(card["id"]) for card in cards if card.get("parent"))
        called = frozenset(str(one) for one in names if one)
        return Facts(str(said.get("version", "")), served[0] if served else "default", called, adapters, _label(info))

    async def weights(self) -> str | None:
        return _label(await self._info())

    async def load(self, name: str, path: str) -> None:
        body = {"lora_name": name, "lora_path": path}
        await _load(self._remote, "/load_lora_adapter", body, "start it with --enable-lora")

    async def unload(self, name: str) -> None:
        await self._remote.ask("POST", "/unload_lora_adapter", body={"lora_name": name})

    async def swap(self, label: str, path: str) -> None:
        body: Json = {"model_path": path, "flush_cache": True, "weight_version": label}
        answer = await self._remote.done("/update_weights_from_disk", body=body)
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise UnfitPatch(f"the engine did not take the weights: {message_of(answer)}")
        # a server that does not know the field flush_cache does it by itself; this one is for certain
        await self._remote.done("/flush_cache")

    def addressed(self, served: str, adapter: str | None) -> Json:
        return {"model": served} if adapter is None else {"model": served, "lora_path": adapter}

    def is_lost(self, status: int, message: str, adapter: str | None) -> bool:
        return adapter is not None and adapter in message and "not loaded" in message

    async def _info(self) -> Mapping[str, Any]:
        for path in ("/model_info", "/get_model_info"):
            status, answer = await self._remote.ask("GET", path)
            if status == 200 and isinstance(answer, Mapping):
                return answer
        raise EngineUnavailable("the engine tells nothing under /model_info, as SGLang does")


async def dialect(remote: Remote, kind: str) -> Dialect:
    """The dialect that the server speaks: the one named, else found by what it answers. Raises EngineUnavailable."""
    if kind == "vllm":
        return Vllm(remote)
    if kind == "sglang":
        return Sglang(remote)
    for path in ("/model_info", "/get_model_info"):
        status, answer = await remote.ask("GET", path)
        if status == 200 and isinstance(answer, Mapping) and "model_path" in answer:
            return Sglang(remote)
    status, answer = await remote.ask("GET", "/version")
    if status == 200 and isinstance(answer, Mapping) and "version" in answer:
        return Vllm(remote)
    raise EngineUnavailable(
        "what stands at ADAPTERHUB_ENGINE_URL answers neither /version, as vLLM, nor /model_info, as SGLang; if it is "
        "one of them, say which in ADAPTERHUB_ENGINE_KIND"
    )


async def _cards(remote: Remote) -> list[Mapping[str, Any]]:
    status, answer = await remote.ask("GET", "/v1/models")
    if status != 200 or not isinstance(answer, Mapping):
        raise refused(status if status != 200 else 500, message_of(answer))
    return [card for card in answer.get("data", []) if isinstance(card, Mapping) and card.get("id")]


async def _load(remote: Remote, path: str, body: Json, needs: str) -> None:
    status, answer = await remote.ask("POST", path, body=body, timeout_s=LOAD_S)
    message = message_of(answer)
    if status == 404 and message in ("Not Found", "null"):
        raise EngineUnavailable(f"the engine has no {path}; {needs}")
    if status == 404:
        raise EngineUnavailable(
            f"the engine does not find {body['lora_path']}: it must see ADAPTERHUB_ENGINE_FOLDER, and where that has "
            f"another path for it, ADAPTERHUB_ENGINE_MOUNT says which ({message})"
        )
    failed = isinstance(answer, Mapping) and answer.get("success") is False
    if (status < 300 and not failed) or "already" in message:
        return
    if status in (429, 503):
        raise refused(status, message)
    raise UnfitPatch(f"the engine does not take the adapter at {body['lora_path']} ({status}): {message}")


def _label(info: Mapping[str, Any]) -> str | None:
    return str(info["weight_version"]) if "weight_version" in info else None


async def _head(reply: httpx.Response) -> bytes:
    found = b""
    async for piece in reply.aiter_bytes():
        found += piece
        if len(found) > MAX_ERROR_BYTES:
            break
    return found


async def _events(reply: httpx.Response) -> AsyncIterator[Json]:
    """The JSON of each event. Raises Refusal for an error among them, EngineUnavailable for an end without "[DONE]"."""
    async for line in reply.aiter_lines():
        if not line.startswith("data:"):
            continue
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            return
        found = _json(text.encode())
        if not isinstance(found, dict):
            raise EngineUnavailable(f"the engine sent an event that is no JSON object: {text[:100]}")
        if "error" in found:
            error = found["error"]
            code = error.get("code") if isinstance(error, Mapping) else None
            raise Refusal(code if isinstance(code, int) else 400, message_of(found))
        yield found
    raise EngineUnavailable("the engine broke off in the middle of an answer")


def _json(content: bytes) -> Any:
    try:
        return json.loads(content) if content.strip() else None
    except ValueError:
        return content[:500].decode(errors="replace")
