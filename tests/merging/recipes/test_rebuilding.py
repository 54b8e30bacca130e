"""Recipes rebuilt from their canonical form: the same form again, and nothing from what is none."""

import json
from dataclasses import replace
from typing import Any

import pytest

from adapterhub.merging.errors import InvalidRecipe, RecipeTooLarge
from adapterhub.merging.recipes.canonical import Input, Ref, canonical
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.head_policy import Heads
from adapterhub.merging.recipes.nodes import Form
from adapterhub.merging.recipes.rebuilding import rebuilt
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from tests.merging.recipes.test_canonical import inputs

__all__ = ["inputs"]

EXPRESSIONS = [
    "demo/base",
    "demo/base + demo/a - 0.3*demo/b",
    "demo/base + 0.1*delta(demo/m, demo/base) + demo/a",
    "demo/m + delta(demo/base, demo/m)",
    "ties(demo/base; 0.5*demo/a, 0.5*demo/b, density=0.2)",
    "demo/base + 2*ties(0.5*(demo/a + 0.25*demo/b), demo/c, normalize=count)",
    "demo/base + dare_ties(linear(0.3*demo/a, normalize=false), demo/b, seed=7, density=0.9)",
    "slerp(demo/base; demo/m, t=0.25)",
    "della(demo/base; demo/a - demo/a, demo/b, epsilon=0.01)",
    'demo/base + [0.1, 0.9]*demo/a - 0.5*{"q_proj": [0.2, 0.4], "*": 1}*demo/b',
    'ties(demo/base; [0.3, 0.7]*demo/a, demo/b, density={"mlp": 0.2, "*": [0.4, 0.6]})',
    "stack(demo/base[0:1], slerp(demo/base[1:2]; demo/m[1:2], t=0.25))",
    "proxy(demo/m; demo/base + 2*demo/a, 0.25*(demo/base + demo/b), anti=demo/base, alpha=0.5)",
    "ensemble(0.5*demo/m, 2*ties(demo/base; demo/a, demo/b), space=probs)",
    "fusion(demo/m; demo/base + demo/a, base=demo/base)",
]
FORMS = [
    Form(dtype="BF16", layers=2),
    Form(tokenizer=TokenizerPolicy("union", (("<x>", TokenRow(Ref("demo/m"), token_id=3)),), 64, "chatml")),
    Form(tokenizer=TokenizerPolicy(Ref("demo/m"), prefers_base=False)),
    Form(heads=Heads("drop")),
    Form(heads=Heads("keep", Ref("demo/a"))),
]


@pytest.mark.parametrize("text", EXPRESSIONS)
@pytest.mark.parametrize("result", [{}, {"dtype": "BF16"}, {"as_kind": "lora"}])
def test_a_rebuilt_recipe_has_the_same_canonical_form(
    text: str, result: dict[str, Any], inputs: dict[Ref, Input]
) -> None:
    recipe = parse(text)
    inputs = {ref: inputs[replace(ref, layers=None)] for ref in recipe.references()}
    before = canonical(recipe, inputs, **result)
    found = rebuilt(before.encode())
    by_name = {(one.name, one.path): one for one in inputs.values()}
    given = {ref: by_name[name, ref.path] for ref, name in zip(found.refs, found.names, strict=True)}
    assert canonical(found.recipe, given, dtype=found.dtype, as_kind=found.as_kind) == before
    assert parse(str(found.recipe)).references() == found.recipe.references()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_a_recipe_file_says_of_the_result_comes_back(form: Form, inputs: dict[Ref, Input]) -> None:
    recipe = replace(parse("demo/base + 0.5*demo/a"), form=form)
    before = canonical(recipe, inputs)
    found = rebuilt(before.encode())
    by_name = {one.name: one for one in inputs.values() if not one.path}
    given = {ref: by_name[name] for ref, name in zip(found.refs, found.names, strict=True)}
    assert canonical(found.recipe, given, dtype=found.dtype, as_kind=found.as_kind) == before


def broken(given: dict[Ref, Input], **changes: Any) -> bytes:
    value = json.loads(canonical(parse("ties(demo/base; demo/a, demo/b)"), given))
    return json.dumps(value | changes).encode()


def method(**changes: Any) -> dict[str, Any]:
    return {"weight": 1, "method": "ties", "parameters": {}, "inputs": [], **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "mergekit"}, "is 'mergekit' version 1"),
        ({"format_version": 9}, "version 9"),
        ({"base": 7}, "no canonical recipe"),
        ({"base": -1}, "-1 is no number of an input"),
        ({"base": True}, "True is no number of an input"),
        ({"sum": [{"weight": "much", "input": 0}]}, "'much' is no weight"),
        ({"sum": [{"weight": 1e999, "input": 0}]}, "inf is no weight"),
        ({"sum": [{"input": 0}]}, "no canonical recipe"),
        ({"sum": [{"weight": 1, "input": 0, "layers": "3-5"}]}, "a part with 'input' says layers"),
        ({"sum": [{"weight": 1, "model": 0}]}, "a part has none of input, delta, method"),
        ({"sum": [method(parameters={"density": {}})]}, "the parameter density is"),
        ({"sum": [method(parameters={"density": [0.2]})]}, "no canonical recipe"),
        ({"sum": [method(parameters={"density": [["*", [1e999]]]})]}, "is no choice of values by tensor"),
        ({"sum": [{"weight": 1, "input": 0, "schedules": [[["*", ["a", "b"]]]]}]}, "is no weight that differs"),
        ({"cast": "F8"}, "cast is 'F8'"),
        ({"sum": [method(parameters={"density": 1e999})]}, "the parameter density is inf"),
        ({"sum": [method(method="a(b)")]}, "'a\\(b\\)' is no merge method"),
        ({"sum": [method(method=7)]}, "7 is no merge method"),
        ({"tokenizer": "union"}, "no canonical recipe"),
        ({"filters": []}, "the recipe says filters"),
        ({"dtype": 16}, "16 is no text"),
        ({"heads": "mean"}, "heads is 'mean'; expected drop, multi, or keep"),
        ({"heads": {"keep": "sha256:0"}}, "expected drop, multi, or keep with the digest of an input"),
        ({"heads": {"keep": ["x"]}}, "expected drop, multi, or keep"),
        ({"inputs": [{"name": "a/b", "path": "", "kind": "model", "digest": "", "heads": [0, 8]}]}, "says heads"),
        ({"inputs": "demo/base"}, "no canonical recipe"),
    ],
)
def test_what_is_no_canonical_recipe_is_refused(changes: dict[str, Any], said: str, inputs: dict[Ref, Input]) -> None:
    with pytest.raises(InvalidRecipe, match=said):
        rebuilt(broken(inputs, **changes))


def test_what_is_too_large_or_too_deep_is_refused(inputs: dict[Ref, Input]) -> None:
    part: dict[str, Any] = {"weight": 1.0, "input": 0}
    with pytest.raises(RecipeTooLarge, match="more than 2048 parts"):
        rebuilt(broken(inputs, sum=[part] * 2049))
    for _ in range(70):
        part = {"weight": 1.0, "method": "ties", "parameters": {}, "inputs": [{"weight": 1.0, "sum": [part]}]}
    with pytest.raises(RecipeTooLarge):
        rebuilt(broken(inputs, sum=[part]))
    with pytest.raises(InvalidRecipe):
        rebuilt(b"[" * 100_000)
    with pytest.raises(RecipeTooLarge, match="bytes"):
        rebuilt(b" " * (5 << 20))
