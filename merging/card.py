"""The README.md of a merged model or adapter: what the Hub's card format asks for, and how to make it again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from adapterhub.merging import patches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adapterhub.merging.plan import Plan


def card(plan: Plan, report: Mapping[str, Any]) -> str:
    """The model card of a plan's result: front matter, the recipe, every input as it was resolved, and what was lost.

    report: what the engine says of the run.

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
    return "\n".join([*lines, *_losses(report)])


def _losses(report: Mapping[str, Any]) -> Iterator[str]:
    """What a reduction of ranks lost, with the modules where most was."""
    lost = report.get("reduction")
    if lost is None:
        return
    worst = sorted(lost["modules"].items(), key=lambda item: (-item[1]["error"], item[0]))[:10]
    yield f"Ranks were reduced ({lost['asked']}): the patch differs from the exact sum by {lost['error']:.3g} of its"
    yield "norm. Largest differences:"
    yield from ("", "| module | ranks | of | difference |", "|---|---|---|---|")
    for module, one in worst:
        yield f"| `{module}` | {one['r']} | {one['of']} | {one['error']:.3g} |"
    yield ""


_LIBRARIES = {"peft": "peft", "diffusion": "diffusers", "llama.cpp": "gguf"}
"""The Hub's name of what loads a kind, by its family."""


def _library(plan: Plan) -> str:
    return "transformers" if plan.as_kind is None else _LIBRARIES[patches.kinds()[plan.as_kind].family]


def _repository(name: str) -> str:
    """ "ns/name" of "ns/name@revision"."""
    return name.partition("@")[0]
