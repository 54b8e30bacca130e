"""What computed a result: versions, device and arithmetic, beside the recipe that says what was meant.

Lies in a result as execution.json and is no part of its recipe: the same recipe may be carried out by another machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from adapterhub import __version__
from adapterhub.merging.folders import canonical_json

if TYPE_CHECKING:
    from adapterhub.merging.plan import Plan

FILE = "execution.json"
FORMAT = "adapterhub.execution"

_WORDS: Mapping[str, str] = {
    "engine": "adapterhub",
    "torch": "torch",
    "device": "device",
    "cpu_capability": "CPU capability",
    "dtypes": "dtypes",
    "form": "form",
}
"""What may make other bytes of one recipe, and what messages call it."""


def execution(plan: Plan) -> dict[str, Any]:
    """What a run of the plan here is, as JSON. id: the execution id, of all the rest.

    cpu_capability: the instructions that torch uses of this CPU. dtypes: of the tensors written; form: "merged", as
    opposed to what is attached while it runs.
    """
    written = plan.outputs if plan.export is None else plan.export.tensors
    told = {
        "format": FORMAT,
        "format_version": 1,
        "recipe_digest": plan.recipe_digest,
        "engine": __version__,
        "torch": torch.__version__,
        "device": "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtypes": sorted({one.dtype for one in written}),
        "form": "merged",
    }
    return told | {"id": "ah-" + hashlib.sha256(canonical_json(told)).hexdigest()[:16]}


def unlike(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what two executions differ in; each may be why their bytes do."""
    for key, word in _WORDS.items():
        there, now = recorded.get(key), here.get(key)
        if there != now:
            yield f"{word}: {_told(there)} then, {_told(now)} now"


def _told(value: Any) -> str:
    if value is None:
        return "not recorded"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
