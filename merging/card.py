"""The README.md of a merged model or adapter: what the Hub's card format asks for, and how to make it again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from adapterhub.merging import patches

if TYPE_CHECKING:
    from adapterhub.merging.plan import Plan


def card(plan: Plan) -> str:
    """The model card of a plan's result: front matter, the recipe, and every input as it was resolved.

    Strings are written as JSON, which is YAML: no name can break out of its place.
    """
    base = _repository(plan.base.name)
    is_adapter = plan.export is not None
    front = {
        "base_model": base,
        "base_model_relation": "adapter" if is_adapter else "merge",
        "library_name": _library(plan),
        "tags": ["adapterhub", "merge"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# A merge on {base}", "", "Made by adapterhub from this recipe:", ""]
    lines += [f"    {plan.recipe}", "", "| input | read as |", "|---|---|"]
    lines += [f"| `{ref}` | `{one.name}` |" for ref, one in plan.inputs]
    lines += [
        "",
        f"Recipe digest: `{plan.recipe_digest}`. `recipe.json` holds the recipe with every input's digest.",
        "",
    ]
    return "\n".join(lines)


_LIBRARIES = {"peft": "peft", "diffusion": "diffusers", "llama.cpp": "gguf"}
"""The Hub's name of what loads a kind, by its family."""


def _library(plan: Plan) -> str:
    return "transformers" if plan.as_kind is None else _LIBRARIES[patches.kinds()[plan.as_kind].family]


def _repository(name: str) -> str:
    """ "ns/name" of "ns/name@revision"."""
    return name.partition("@")[0]
