"""Expressions: what they mean, how they print, and what is said of those that are wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.errors import ExpressionError, RecipeTooLarge
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Call, Delta, Node, Recipe, Ref, Sum, Weighted, total, weighted
from adapterhub.merging.recipes.values import Schedule, schedule

A, B, M = Ref("demo/a"), Ref("demo/b"), Ref("demo/base")

MEANINGS: dict[str, Node] = {
    "demo/base": M,
    "demo/base@v1.0": Ref("demo/base", "v1.0"),
    "demo/base@refs/pr/1": Ref("demo/base", "refs/pr/1"),
    "demo/base/sub/folder@main": Ref("demo/base", "main", "sub/folder"),
    '"demo/two words@my branch"': Ref("demo/two words", "my branch"),
    r'"demo/say \"hi\" \\ back"': Ref('demo/say "hi" \\ back'),
    "demo/base + 0.7*demo/a - demo/b": Sum((M, Weighted(0.7, A), Weighted(-1.0, B))),
    "demo/base + -.5*demo/a": Sum((M, Weighted(-0.5, A))),
    "demo/base + 1*demo/a": Sum((M, A)),
    "demo/base +\n\t2 * 3e-1*demo/a": Sum((M, Weighted(0.6, A))),
    "demo/base:demo/a": Sum((M, A)),
    "demo/base:demo/a:demo/b": Sum((M, A, B)),
    "demo/base + 2*(demo/a + demo/b)": Sum((M, Weighted(2.0, Sum((A, B))))),
    "demo/base + (demo/a + demo/b)": Sum((M, A, B)),
    "(demo/base)": M,
    "demo/x-1 + demo/y_2.5-": Sum((Ref("demo/x-1"), Ref("demo/y_2.5-"))),
    "3d/model": Ref("3d/model"),
    "ties(demo/base; 0.5*demo/a, demo/b, density=0.2)": Call("ties", M, (Weighted(0.5, A), B), (("density", 0.2),)),
    "ties(demo/a)": Call("ties", None, (A,)),
    'x(demo/a, b=true, a=count, c="two words", d=-1e-3)': Call(
        "x", None, (A,), (("a", "count"), ("b", True), ("c", "two words"), ("d", -0.001))
    ),
    "demo/base + 0.5*delta(demo/a, demo/b)": Sum((M, Weighted(0.5, Delta(A, B)))),
    "demo/base + [0.1, .9]*demo/a": Sum((M, Weighted(1.0, A, (Schedule((("*", (0.1, 0.9)),)),)))),
    'demo/base - 2*{"attn": 0.7, mlp: [0, 1], "*": .5}*demo/a': Sum(
        (M, Weighted(-2.0, A, (Schedule((("attn", (0.7,)), ("mlp", (0.0, 1.0)), ("*", (0.5,)))),)))
    ),
    "ties(demo/a, density=[0.2, 1], normalize=[count, none])": Call(
        "ties",
        None,
        (A,),
        (("density", Schedule((("*", (0.2, 1.0)),))), ("normalize", Schedule((("*", ("count", "none")),)))),
    ),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_an_expression_means(text: str) -> None:
    recipe = parse(text)
    assert recipe.root == MEANINGS[text]
    assert recipe.text == text
    assert parse(str(recipe)) == recipe


parts = st.text(st.characters(codec="utf-8", exclude_characters="/@"), min_size=1, max_size=6).filter(
    lambda part: part not in (".", "..") and part.isprintable()
)
refs = st.builds(
    lambda segments, revision: Ref.of("/".join(segments) + ("@" + revision if revision else "")),
    st.lists(parts, min_size=1, max_size=4),
    st.none() | st.lists(parts, min_size=1, max_size=3).map("/".join),
)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
values = st.booleans() | numbers | words.filter(lambda word: word not in ("true", "false"))
parts_of_names = st.sampled_from(["mlp", "self_attn", "layers.1.", 'a "quoted" \\ part'])
gradients = st.lists(numbers, min_size=1, max_size=3)
schedules = st.builds(
    lambda cases, rest: schedule([*cases, ("*", rest)]),
    st.lists(st.tuples(parts_of_names, gradients), max_size=2),
    gradients,
).filter(lambda value: isinstance(value, Schedule))
identifiers = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda name: name != "delta")


def grow(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    calls = st.builds(
        lambda method, base, inputs, parameters: Call(method, base, tuple(inputs), tuple(sorted(parameters.items()))),
        identifiers,
        st.none() | nodes,
        st.lists(nodes, min_size=1, max_size=3),
        st.dictionaries(identifiers, values | schedules, max_size=2),
    )
    return (
        st.builds(weighted, numbers, nodes, st.lists(schedules, max_size=2))
        | st.lists(nodes, min_size=2, max_size=4).map(total)
        | calls
    )


expressions = st.recursive(refs | st.builds(Delta, refs, refs), grow, max_leaves=8)


@given(node=expressions)
def test_whatever_is_printed_parses_to_the_same(node: Node) -> None:
    recipe = Recipe(node)
    assert parse(str(recipe)) == recipe
    assert str(parse(str(recipe))) == str(recipe)


@given(text=st.text(max_size=40) | st.text("ab/@.+-*():;,=0.5 \"'", max_size=40))
def test_any_text_is_read_or_refused_with_a_position(text: str) -> None:
    try:
        recipe = parse(text)
    except ExpressionError as error:
        position = error.position
    else:
        position = 0
        assert parse(str(recipe)) == recipe
    assert 0 <= position <= len(text)


WRONG = {
    "": (0, "found the end, expected '(' or a name or a number"),
    "demo/a +demo/b": (7, "'+' needs a space on both sides"),
    "demo/a+demo/b": (6, "'+' needs a space on both sides"),
    "demo/a + ": (9, "found the end, expected '(' or a name or a number"),
    "demo/a demo/b": (7, "found 'd'"),
    "demo/a * 2": (7, "found '*'"),
    "2": (1, "found the end, expected '*'"),
    "(demo/a": (7, "found the end, expected ')'"),
    "demo/a//b": (6, "found '/'"),
    "demo/../b": (0, "is no name; expected namespace/name"),
    "x + demo/./b": (4, "is no name; expected namespace/name"),
    '"demo/a@"': (0, "a revision is expected after '@'"),
    "ties(demo/base; density=1)": (0, "ties needs at least one input"),
    "ties(a, density=1, density=2)": (19, "density is given twice"),
    "demo/ties(a)": (0, "demo/ties is no merge method"),
    "a + delta(b)": (4, "delta takes the names of two models"),
    "delta(a, 2*b)": (0, "delta takes the names of two models"),
    "a + 1e999*b": (4, "1e999 is too large for a number"),
    "a + 1e200*1e200*b": (4, "multiply to more than a number holds"),
    "a + []*b": (5, "found ']', expected a name or a number"),
    "a + [0.5*b": (8, "found '*', expected ',' or ']' or '}'"),
    "a + [1, true]*b": (5, "a gradient's values are all numbers, all words, or all true and false"),
    "a + [x, y]*b": (5, "a weight is made of numbers"),
    'a + {"mlp": 0.2}*b': (5, "a choice by name ends with what holds for all other tensors"),
    "a + [1e200, 2]*1e999*b": (15, "1e999 is too large for a number"),
    "a; rm -rf /": (1, "found ';'"),
    "{{ a }}": (1, "found '{', expected a name"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_expression_is_explained_at_its_place(text: str) -> None:
    position, says = WRONG[text]
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert says in caught.value.problem
    assert caught.value.position == position
    assert f"at character {position + 1} of: {text}" in str(caught.value)


def test_references_are_named_once_in_order() -> None:
    assert parse("demo/base + ties(demo/b, demo/a) - delta(demo/a, demo/base)").references() == (M, B, A)


@pytest.mark.parametrize(
    "text",
    [
        "a + " * 30_000 + "a",
        "(" * 65 + "a" + ")" * 65,
        " + ".join("a" * 2049),
        "f(" * 70 + "a" + ")" * 70,
        "[0, 1]*" * 2049 + "a",
        "f(a, " + ", ".join(f"p{number}=[0, 1]" for number in range(2049)) + ")",
    ],
    ids=["characters", "brackets", "terms", "calls", "schedules", "parameters"],
)
def test_a_recipe_past_a_limit_is_refused(text: str) -> None:
    with pytest.raises(RecipeTooLarge):
        parse(text)


def test_the_deepest_and_longest_allowed_are_read() -> None:
    parse("(" * 64 + "a" + ")" * 64)
    parse("1*" * 5000 + "a")
    parse(" + ".join("a" * 2048))
