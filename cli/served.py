"""What engines outside make of patches of this machine: a thin use of the merging library, and of an engine's API."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapterhub.cli import local
from adapterhub.cli.engine_client import engine as engine_at
from adapterhub.cli.errors import Misused
from adapterhub.merging import canary as measuring
from adapterhub.merging import serveability
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.quantised import dequantised
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.serveable import engines
from adapterhub.merging.serving_features import look
from adapterhub.merging.serving_rules import asked


def serveable(source: Path, engine: str, *, base: Path | None, out: Path | None) -> dict[str, Any]:
    """The verdict on the patch in `source`, and with `out` what was written there.

    Raises UnknownEngine, NotRepresentable where not all of it is served and `out` is given, FileExistsError, and what
    `merging.serving_features.look` raises.
    """
    chosen, version = asked(engine, engines())
    here = None if base is None else dequantised(Checkpoint.open(LocalFolder(base), name=base.resolve().name))
    found = look(LocalFolder(source), "", chosen, version, here)
    verdict = serveability.judge(found)
    told = verdict.as_json()
    if out is not None:
        told["written"] = serveability.write(found, verdict, out).as_json()
    return told


def canary(
    source: Path,
    base: Path,
    url: str,
    model: str,
    *,
    base_model: str | None,
    api_key_env: str | None,
    prompts: Sequence[str],
    tolerance: float,
    memory_bytes: int,
) -> dict[str, Any]:
    """What the engine at `url` serves under the name `model`, held against the patch in `source` folded here.

    base_model: the base's name there; else the parent that the engine names, else none is asked. api_key_env: the
    variable that holds the key. Raises Misused, CliError for an engine that does not answer, and as `local.merge`.
    """
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise Misused(f"--api-key-env {api_key_env}: that variable is not set")
    asked_here = tuple(prompts) or measuring.PROMPTS
    with engine_at(url, key) as engine:
        its_base = base_model or engine.parent(model)
        told = engine.next_tokens(model, asked_here)
        of_base = engine.next_tokens(its_base, asked_here) if its_base else None
    with TemporaryDirectory(prefix="adapterhub-canary-") as place:
        folded = Path(place) / "folded"
        folders = {"base": base, "patch": source}
        local.merge(
            parse("base + patch"),
            folders,
            folded,
            as_kind=None,
            dtype="float32",
            memory_bytes=memory_bytes,
            progress=lambda progress: None,
        )
        patched = measuring.next_logprobs(folded, base, asked_here)
    unpatched = measuring.next_logprobs(base, base, asked_here)
    verdict = measuring.judge(told, of_base, patched, unpatched, tolerance)
    return {"model": model, "base_model": its_base, "prompts": len(asked_here), **verdict.as_json()}
