"""The README.md of a merged model or adapter: what the Hub's card format asks for, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging import patches
from adapterhub.merging.recipes.nodes import Call, Node, children

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adapterhub.merging.plan import Plan
    from adapterhub.merging.recipes.canonical import Input

UNKNOWN = "unknown"
"""What stands for a licence that nobody declares."""


def card(plan: Plan, report: Mapping[str, Any]) -> str:
    """The model card of a plan's result: front matter, the recipe, every input at its commit with its licence, and what
    was lost.

    report: what the engine says of the run.

    A merge's base_model are all its inputs, an adapter's is its base, as the Hub draws its trees of models. Strings are
    written as JSON, which is YAML: no name can break out of its place.
    """
    base = _repository(plan.base.name)
    is_adapter = plan.export is not None
    methods = sorted(set(_methods(plan.recipe.root)))
    front = {
        "base_model": base if is_adapter else _parents(plan, base),
        "base_model_relation": "adapter" if is_adapter else "merge",
        "library_name": _library(plan),
        "tags": ["adapterhub", "merge", *methods],
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# A merge on {base}", "", "Made by adapterhub from this recipe:", "", f"    {plan.recipe}", ""]
    if methods:
        lines += [f"Merge methods: {', '.join(methods)}.", ""]
    lines += ["| input | kind | commit | licence |", "|---|---|---|---|"]
    lines += [_row(one) for _, one in plan.inputs]
    lines += [
        "",
        f"Recipe digest: `{plan.recipe_digest}`. `recipe.json` holds the recipe with every input's digest, and "
        "`execution.json` what computed it. `adapterhub recipe reproduce` makes it again and compares.",
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


def _parents(plan: Plan, base: str) -> str | list[str]:
    """The repositories that a model was made of, the base first; the base alone where no input is a repository."""
    names = [base, *(_repository(one.name) for _, one in plan.inputs)]
    found = list(dict.fromkeys(name for name in names if name.count("/") == 1))
    return found if len(found) > 1 else base


def _methods(node: Node) -> Iterator[str]:
    if isinstance(node, Call):
        yield node.method
    for child in children(node):
        yield from _methods(child)


def _row(one: Input) -> str:
    name, _, commit = one.name.partition("@")
    place = name if not one.path or name.endswith("/" + one.path) else f"{name}/{one.path}"
    commit = f"`{commit}`" if commit else ""
    return f"| `{_cell(place)}` | {one.kind} | {commit} | {_cell(one.licence or UNKNOWN)} |"


def _cell(text: str) -> str:
    """`text` that neither ends a cell of a table nor the code in it."""
    return " ".join(text.replace("`", "'").replace("|", "/").replace("<", "").split())


def _repository(name: str) -> str:
    """ "ns/name" of "ns/name@revision"."""
    return name.partition("@")[0]
