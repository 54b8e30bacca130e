"""Compositions as recipes: text that comes back, one canonical form, and what is refused with what to do."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.decoding import operators
from adapterhub.merging.errors import (
    BaseMismatch,
    ExpressionError,
    InvalidParameter,
    InvalidRecipe,
    MergingError,
    NotRepresentable,
)
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input, Ref, canonical, recipe_digest
from adapterhub.merging.recipes.compositions import composition_of
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Composed, Recipe
from adapterhub.merging.recipes.rebuilding import rebuilt
from adapterhub.merging.recipes.yaml import read, text_of
from tests.merging.recipes.test_canonical import inputs

__all__ = ["inputs"]

MEMBERS = st.sampled_from(
    [
        "demo/base",
        "demo/m@v2",
        "demo/base + 0.5*demo/a",
        "ties(demo/base; demo/a, demo/b)",
        '"demo/a b"',
        "demo/m:demo/a",
    ]
)


@st.composite
def compositions(draw: st.DrawFn) -> str:
    spec = operators()[draw(st.sampled_from(sorted(operators())))]
    count = draw(st.integers(spec.count[0], spec.count[1] or 3))
    others = [draw(MEMBERS) for _ in range(count)]
    if spec.takes_weights:
        others = [f"{draw(st.sampled_from([0.5, 2, -0.3]))}*({one})" for one in others]
    named = [f"{role}={draw(MEMBERS)}" for role in draw(st.permutations(spec.named))]
    start = f"{draw(MEMBERS)}; " if spec.first else ""
    return f"{spec.name}({start}{', '.join([*others, *named])})"


@given(compositions())
def test_a_composition_prints_as_text_that_means_the_same(text: str) -> None:
    recipe = parse(text)
    assert parse(str(recipe)) == recipe
    assert read(text_of(recipe)).root == recipe.root
    found = composition_of(recipe)
    roles = [one.role for one in found.members]
    spec = found.spec
    others = len(roles) - bool(spec.first) - len(spec.named)
    assert roles == [*([spec.first] if spec.first else []), *spec.named, *[spec.others] * others]


def digest(text: str, inputs: dict[Ref, Input]) -> str:
    recipe = parse(text)
    plain = {replace(ref, revision=None): one for ref, one in inputs.items()}
    given = {ref: plain[replace(ref, revision=None)] for ref in recipe.references()}
    return recipe_digest(canonical(recipe, given))


def test_the_digest_covers_operator_parameters_members_weights_and_order(inputs: dict[Ref, Input]) -> None:
    texts = [
        "proxy(demo/m; demo/base + demo/a, anti=demo/base)",
        "proxy(demo/m; demo/base + demo/a, anti=demo/base, alpha=0.5)",
        "proxy(demo/m; 0.5*(demo/base + demo/a), anti=demo/base)",
        "proxy(demo/m; demo/base + demo/b, anti=demo/base)",
        "proxy(demo/m; demo/base, anti=demo/base + demo/a)",
        "eft(demo/m; demo/base + demo/a, base=demo/base)",
        "ensemble(demo/m, demo/base)",
        "ensemble(demo/base, demo/m)",
        "demo/m",
    ]
    assert len({digest(text, inputs) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (
            "proxy(demo/m; demo/base + demo/a + demo/b, anti=demo/base)",
            "proxy(demo/m; demo/base + demo/b + demo/a, anti=demo/base, alpha=1)",
        ),
        ("proxy(demo/m; demo/base + demo/a, anti=demo/base)", "proxy(demo/m; demo/base@main + demo/a, anti=demo/base)"),
        ("ensemble(demo/m, 1*demo/base)", "ensemble(demo/m, demo/base, space=logits)"),
    ],
)
def test_what_means_the_same_has_one_digest(left: str, right: str, inputs: dict[Ref, Input]) -> None:
    assert digest(left, inputs) == digest(right, inputs)


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("proxy(demo/m; demo/base)", ExpressionError, "(large; expert, ..., anti=NAME, alpha=1); anti is missing"),
        ("proxy(demo/base, anti=demo/m)", ExpressionError, "proxy is written"),
        ("ensemble(demo/m; demo/base)", ExpressionError, "ensemble is written ensemble(model, ..., space=logits)"),
        ("contrast(demo/m; demo/base, demo/base)", ExpressionError, "contrast is written"),
        ("contrast(demo/m; 0.5*demo/base)", ExpressionError, "a model takes no weight here"),
        ("ensemble([0, 1]*demo/m, demo/base)", ExpressionError, "a model takes one number here"),
        ("proxy(demo/m; demo/base, anti=demo/m, alhpa=2)", InvalidParameter, "did you mean alpha"),
        ("proxy(demo/m; demo/base, anti=demo/m, alpha=[0, 1])", InvalidParameter, "found schedules"),
        ("ensemble(demo/m, -1*demo/base)", InvalidParameter, "add up to 0"),
        (
            "ensemble(0.5*demo/m, ensemble(demo/base))",
            ExpressionError,
            "ensemble(...) composes whole models and stands",
        ),
        ("demo/m + ensemble(demo/base)", ExpressionError, "stands alone"),
        ("2*ensemble(demo/base)", ExpressionError, "stands alone"),
        ("ensemble(stack(demo/m[0:1]), demo/base)", ExpressionError, "a stack is not served"),
        ("ensemble(demo/m[0:1], demo/base)", ExpressionError, "layers are named in a stack alone"),
        ("proxy(0.5*demo/m; demo/base, anti=demo/base)", BaseMismatch, "takes no weight"),
    ],
)
def test_what_is_no_composition_is_refused(
    text: str, error: type[MergingError], told: str, inputs: dict[Ref, Input]
) -> None:
    recipe = parse(text)
    given = {ref: inputs[replace(ref, layers=None)] for ref in recipe.references()}
    with pytest.raises(error) as caught:
        canonical(recipe, given)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("proxy(demo/m; demo/base, anti=3)", "anti is 3.0; a model is expected"),
        ("proxy(demo/m; demo/base, anti=../x)", "expected"),
        ("proxy(demo/m; demo/base, anti=demo/m, alpha=demo/m + demo/a)", "takes no model as alpha"),
        (
            "ties(demo/base; demo/a, density=demo/m + demo/a)",
            "a number or word is expected",
        ),
        ("proxy(demo/m; anti=demo/base)", "needs at least one input"),
    ],
)
def test_text_that_means_no_composition_does_not_parse(text: str, told: str) -> None:
    with pytest.raises(ExpressionError, match=told):
        parse(text)


def test_nothing_is_merged_of_a_composition(inputs: dict[Ref, Input]) -> None:
    recipe = parse("ensemble(demo/m, demo/base)")
    given = {ref: inputs[ref] for ref in recipe.references()}
    for attaches in (False, True):
        with pytest.raises(NotRepresentable, match="has no merged result; serve it under model="):
            plan(recipe, given, memory_bytes=1 << 30, attaches=attaches)
    with pytest.raises(NotRepresentable, match="nothing of a result's dtype"):
        canonical(read('expression: "ensemble(demo/m, demo/base)"\ndtype: bfloat16'), given)


@pytest.mark.parametrize(
    "change",
    [
        {"operator": "prxy"},
        {"more": 1},
        {"members": [{"role": "model", "weight": "x", "base": 0, "sum": []}]},
        {"members": [{"role": "model", "weight": 1, "base": 7, "sum": []}]},
        {"parameters": {"space": {}}},
    ],
)
def test_a_canonical_composition_that_means_nothing_is_refused(
    change: dict[str, object], inputs: dict[Ref, Input]
) -> None:
    recipe = parse("ensemble(demo/m, demo/base)")
    value = json.loads(canonical(recipe, {ref: inputs[ref] for ref in recipe.references()}))
    value["compose"] |= change
    with pytest.raises(InvalidRecipe):
        rebuilt(json.dumps(value).encode())


def test_a_node_without_text_says_what_it_lacks() -> None:
    with pytest.raises(ExpressionError, match="anti is missing"):
        composition_of(Recipe(Composed("proxy", Ref("a/b"), (Ref("a/c"),))))
