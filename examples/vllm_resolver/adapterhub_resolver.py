"""A vLLM plug-in: `model` in a request to vLLM may be a repository of a hub, or an expression of several adapters.

A name that vLLM does not know comes here. `lab/lora` is fetched as it is; `lab/base + 0.7*lab/a - 0.3*lab/b` is merged
by the hub into one LoRA, as a job, and that is fetched. What is no sum of LoRAs on the base that vLLM serves is not
resolved, and vLLM then answers 404; its log says why.

Reads HF_ENDPOINT and HF_TOKEN, as every client of the hub, and ADAPTERHUB_RESOLVER_RANK: the --max-lora-rank of the
server, to which larger sums are reduced; without it they are refused by vLLM.
"""

import asyncio
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import requests
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

POLL_S = 0.5
LONGEST_S = 600.0
FILES = ("adapter_config.json", "adapter_model.safetensors")

_log = logging.getLogger("vllm.adapterhub")


class Unresolved(Exception):
    """The hub has no LoRA of that name for this base; the text says why."""


class Hub:
    """What is asked of a hub."""

    def __init__(self, url: str, token: str, rank: int | None = None) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self.form = "lora" if rank is None else f"lora:r={rank}"

    def folder(self, name: str) -> Path:
        """Where the files of a repository or an expression lie on this machine. Raises Unresolved."""
        repository, commit = self._merged(name) if " " in name or ":" in name or "(" in name else self._named(name)
        path = huggingface_hub.snapshot_download(
            repository, revision=commit, allow_patterns=FILES, endpoint=self.url, token=self.token
        )
        return Path(path)

    def _named(self, name: str) -> tuple[str, str]:
        repository, _, revision = name.partition("@")
        try:
            info = huggingface_hub.HfApi(self.url, token=self.token).model_info(repository, revision=revision or None)
        except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
            raise Unresolved(f"{name}: {error}") from error
        return repository, str(info.sha)

    def _merged(self, expression: str) -> tuple[str, str]:
        """The repository and commit of the merge; asked for again, it is the same job or the same bytes."""
        job = self._ask("POST", "/api/merges", {"expression": expression, "as": self.form, "private": True})
        until = time.monotonic() + LONGEST_S
        while job["state"] in ("queued", "running"):
            if time.monotonic() > until:
                raise Unresolved(f"{expression}: the hub did not merge it within {LONGEST_S:.0f} s")
            time.sleep(POLL_S)
            job = self._ask("GET", f"/api/jobs/{job['id']}")
        if job["state"] != "succeeded":
            raise Unresolved(f"{expression}: {(job['error'] or {}).get('message', job['state'])}")
        return job["result"]["repo"], job["result"]["commit"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        reply = requests.request(method, self.url + path, json=body, headers=headers, timeout=60, allow_redirects=False)
        if not reply.ok or reply.is_redirect:
            raise Unresolved(f"the hub answers {reply.status_code}: {reply.text[:500]}")
        return reply.json()


class AdapterhubResolver(LoRAResolver):
    """Resolves names by a hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of that name on this base, None where there is none."""
        try:
            folder = await asyncio.to_thread(self.hub.folder, lora_name)
            base = json.loads((folder / FILES[0]).read_text())["base_model_name_or_path"]
            if base != base_model_name:
                raise Unresolved(f"{lora_name}: belongs to {base}, and this server serves {base_model_name}")
        except (Unresolved, OSError, KeyError, ValueError, requests.RequestException) as error:
            _log.warning("not resolved: %s", error)
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=number_of(folder), lora_path=str(folder))


def number_of(folder: Path) -> int:
    """A number by the adapter's bytes: vLLM tells adapters apart by it, and counts those it loads itself from 1."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return (1 << 60) | int.from_bytes(digest.digest()[:7], "big")


def register() -> None:
    """What vLLM calls at its start, in each of its processes."""
    url = os.environ.get("HF_ENDPOINT")
    if not url:
        _log.warning("HF_ENDPOINT is not set, so no adapters are resolved by a hub")
        return
    rank = os.environ.get("ADAPTERHUB_RESOLVER_RANK")
    hub = Hub(url, os.environ.get("HF_TOKEN", ""), int(rank) if rank else None)
    LoRAResolverRegistry.register_resolver("adapterhub", AdapterhubResolver(hub))
