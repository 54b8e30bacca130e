"""Experts of LoRAs in local folders: a thin use of the merging library, and of the serving engine's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.cli.errors import Missing, Misused
from adapterhub.cli.local import named_folders
from adapterhub.hub.serving import heldout
from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.experts import Experts, write_declared, write_routed

DECLARED, TRAINED = "declared", "trained"


@dataclass(frozen=True)
class _Base:
    """A base in a local folder, as the engine takes it."""

    name: str
    folder: LocalFolder
    path: str = ""


def experts(base: Path, named: Sequence[str], out: Path, *, route: str, texts: Sequence[str] = ()) -> dict[str, Any]:
    """What the LoRAs "DOMAIN=FOLDER" became as one routed patch.

    texts: "DOMAIN=FILE" for each domain, to train a router on. Raises Misused, Missing, FileExistsError, and as
    `merging.experts` and `serving.routing`.
    """
    if route not in (DECLARED, TRAINED):
        raise Misused(f"--route {route}: one of {DECLARED} and {TRAINED} is expected")
    if out.exists():
        raise FileExistsError(f"{out}: already there; name a folder that does not exist")
    folders = named_folders(named)
    files = _files(texts, folders) if route == TRAINED else {}
    if texts and route != TRAINED:
        raise Misused(f"--text is what a router is trained on: say --route {TRAINED}")
    here = Checkpoint.open(LocalFolder(base), name=base.resolve().name)
    found = {domain: patches.read(LocalFolder(folder), base=here) for domain, folder in folders.items()}
    together = Experts.of(found, here)
    told = {"folder": str(out), "route": route}
    if route == DECLARED:
        return told | write_declared(together, out)
    return told | _trained(together, base, files, out)


def _trained(together: Experts, base: Path, files: Mapping[str, Path], out: Path) -> dict[str, Any]:
    import torch

    from adapterhub.hub.serving import loading, scoring
    from adapterhub.hub.serving.routing import fit

    loaded = loading.load(_Base(base.resolve().name, LocalFolder(base)), torch.device("cpu"))
    tokens = {}
    for domain, file in files.items():
        examples = heldout.read(file.read_text(encoding="utf-8"), str(file), measure=heldout.ENTROPY)
        tokens[domain] = [scoring.tokens(loaded, text) for text in heldout.texts(examples.lines)]
    routes = fit(loaded.model, together.modules, tokens)
    worst = min(routes.accuracy, key=lambda module: routes.accuracy[module])
    return write_routed(together, routes.matrices, out) | {
        "tokens": {domain: sum(map(len, several)) for domain, several in tokens.items()},
        "accuracy": sum(routes.accuracy.values()) / len(routes.accuracy),
        "least_accurate": {"module": worst, "accuracy": routes.accuracy[worst]},
    }


def _files(texts: Sequence[str], domains: Mapping[str, Path]) -> dict[str, Path]:
    """The file of texts of each domain, in the order of the domains."""
    found = {}
    for pair in texts:
        domain, sign, file = pair.partition("=")
        if not (domain and sign and file):
            raise Misused(f"--text {pair!r}: write DOMAIN=FILE")
        if domain not in domains:
            raise Misused(f"--text {pair!r}: {domain} is no --expert; the domains are {', '.join(domains)}")
        if not Path(file).is_file():
            raise Missing(f"--text {pair!r}: {file} is no file")
        found[domain] = Path(file)
    lacking = next((domain for domain in domains if domain not in found), None)
    if lacking is not None:
        raise Misused(
            f"--route {TRAINED} needs texts of every domain, and {lacking} has none: --text {lacking}=FILE, JSON lines "
            'of {"text": ...}'
        )
    return {domain: found[domain] for domain in domains}
