"""What engines outside make of patches of this machine: a thin use of the merging library, and of an engine's API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterhub.merging import serveability
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.serveable import engines
from adapterhub.merging.serving_rules import asked


def serveable(source: Path, engine: str, *, base: Path | None, out: Path | None) -> dict[str, Any]:
    """The verdict on the patch in `source`, and with `out` what was written there.

    Raises UnknownEngine, NotRepresentable where not all of it is served and `out` is given, FileExistsError, and what
    `merging.serveability.look` raises.
    """
    chosen, version = asked(engine, engines())
    here = None if base is None else Checkpoint.open(LocalFolder(base), name=base.resolve().name)
    found = serveability.look(LocalFolder(source), "", chosen, version, here)
    verdict = serveability.judge(found)
    told = verdict.as_json()
    if out is not None:
        told["written"] = serveability.write(found, verdict, out).as_json()
    return told
