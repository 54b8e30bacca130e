"""The canonical form: what is the same, what is not, and which recipes mean nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from adapterhub.merging import native
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import BaseMismatch, InvalidParameter, InvalidPatch, UnknownMethod, UnknownName
from adapterhub.merging.recipes.canonical import Input, Ref, canonical, recipe_digest
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Ref, Input]:
    """Models base and m, sparse patches a, b and c, and a second name of a."""
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(["base", "m"]):
        tiny.saved(tiny.llama(seed=seed), root / name)
    for number, name in enumerate("abc"):
        delta = np.zeros((16,), np.float32)
        delta[number] = 1.0
        native.write_patch(root / name, sites={"model.norm.weight": native.sparse(delta)}, base={})
    kinds = {"base": "model", "m": "model", "a": "sparse", "b": "sparse", "c": "sparse"}
    found = {
        Ref(f"demo/{name}"): Input(f"demo/{name}@{COMMIT}", LocalFolder(root / name), "", kind)
        for name, kind in kinds.items()
    }
    return found | {Ref("demo/a", "main"): found[Ref("demo/a")]}


SAME = [
    ("demo/base + demo/a + demo/b", "demo/base + demo/b + demo/a"),
    ("demo/base + demo/a", "demo/base:demo/a"),
    ("demo/base + demo/a", "demo/a + demo/base"),
    ("demo/base + 2*(demo/a + demo/b)", "demo/base + 2*demo/b + 2*demo/a"),
    ("demo/base + 0.1*demo/a + 0.2*demo/a + 0.3*demo/a", "demo/base + 0.3*demo/a + 0.2*demo/a + 0.1*demo/a"),
    ("demo/base + demo/a + demo/a", "demo/base + 2*demo/a@main"),
    ("demo/base + demo/a - demo/a + demo/b", "demo/base + demo/b"),
    ("demo/base + 0.5*demo/m", "demo/base + 0.5*delta(demo/m, demo/base)"),
    ("demo/base + delta(demo/m, demo/m)", "demo/base"),
    ("ties(demo/base; demo/a, demo/b)", "demo/base + ties(demo/b, demo/a)"),
    ("ties(demo/base; demo/a, demo/b)", "ties(demo/base; demo/a, demo/b, density=1, normalize=weights)"),
    ("ties(demo/base; 0.5*demo/a, demo/b)", "ties(demo/base; demo/b, 0.5*demo/a)"),
    ("task_arithmetic(demo/base; demo/a, 2*demo/b)", "demo/base + demo/a + 2*demo/b"),
    ("linear(demo/base; demo/a, demo/b)", "demo/base + 0.5*demo/a + 0.5*demo/b"),
    ("linear(demo/base, demo/m)", "demo/base + 0.5*demo/m"),
    ("demo/base + [0, 1]*demo/a + 2*[0, 1]*demo/a", "demo/base + 3*[0, 1]*demo/a"),
    ("demo/base + [0, 1]*(demo/a + 2*demo/b)", "demo/base + [0, 1]*demo/a + [0, 1]*2*demo/b"),
    ("demo/base + [0, 1]*demo/a - [0, 1]*demo/a + demo/b", "demo/base + demo/b"),
    ("demo/base + [0, 1]*[1, 2]*demo/a", "demo/base + [1, 2]*([0, 1]*demo/a)"),
    ('demo/base + {"mlp": 1, "*": [1, 1]}*demo/a', "demo/base + demo/a"),
    ("ties(demo/base; [0, 1]*demo/a, [1, 0]*demo/b)", "ties(demo/base; [1, 0]*demo/b, [0, 1]*demo/a)"),
    ("linear(demo/base; [0, 1]*demo/a, demo/b)", "demo/base + linear(demo/b, [0, 1]*demo/a)"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_meanings_have_equal_digests(one: str, other: str, inputs: dict[Ref, Input]) -> None:
    assert canonical(parse(one), inputs) == canonical(parse(other), inputs)


DIFFERENT = [
    "demo/base",
    "demo/base + demo/a",
    "demo/base + 2*demo/a",
    "demo/base + demo/b",
    "demo/m + demo/a",
    "demo/base + demo/m",
    "demo/base + delta(demo/base, demo/m)",
    "ties(demo/base; demo/a, demo/b)",
    "ties(demo/base; demo/a, demo/b, density=0.5)",
    "ties(demo/base; demo/a, 2*demo/b)",
    "ties(demo/base; demo/a + demo/b)",
    "demo/base + 0.5*ties(demo/a, demo/b)",
    "demo/base + ties(demo/a, ties(demo/b, demo/c))",
    "demo/base + [0, 1]*demo/a",
    "demo/base + [0, 2]*demo/a",
    'demo/base + {"mlp": [0, 1], "*": 0}*demo/a',
    "ties(demo/base; [0, 1]*demo/a, demo/b)",
    "ties(demo/base; demo/a, demo/b, density=[0.5, 1])",
    "linear(demo/base; [0, 1]*demo/a, demo/b)",
    "demo/base + ties([0, 1]*demo/a + demo/b)",
]


def test_different_meanings_have_different_digests(inputs: dict[Ref, Input]) -> None:
    digests = {recipe_digest(canonical(parse(text), inputs)) for text in DIFFERENT}
    digests.add(recipe_digest(canonical(parse("demo/base"), inputs, dtype="BF16")))
    digests.add(recipe_digest(canonical(parse("demo/base + demo/a"), inputs, as_kind="lora")))
    assert len(digests) == len(DIFFERENT) + 2


def test_the_canonical_text_holds_schedules(inputs: dict[Ref, Input]) -> None:
    text = 'demo/base + [0, 1]*demo/a + ties({"mlp": 2, "*": 1}*demo/b, demo/c, density=[0.5, 1])'
    (plain, merged) = sorted(json.loads(canonical(parse(text), inputs))["sum"], key=len)
    assert plain["schedules"] == [[["*", [0.0, 1.0]]]]
    assert merged["parameters"]["density"] == [["*", [0.5, 1.0]]]
    assert [one.get("schedules") for one in merged["inputs"] if "schedules" in one] == [
        [[["mlp", [2.0]], ["*", [1.0]]]]
    ]


def test_the_canonical_text_holds_commits_digests_and_every_parameter(inputs: dict[Ref, Input]) -> None:
    value = json.loads(canonical(parse("demo/base + 0.5*ties(demo/a, 2*demo/b, density=0.5)"), inputs))
    assert {one["name"] for one in value["inputs"]} == {f"demo/{name}@{COMMIT}" for name in ("base", "a", "b")}
    assert all(one["digest"].startswith("sha256:") for one in value["inputs"])
    assert value["inputs"][value["base"]]["name"].startswith("demo/base@")
    (part,) = value["sum"]
    assert (part["weight"], part["method"], part["parameters"]["density"]) == (0.5, "ties", 0.5)
    assert set(part["parameters"]) == {"density", "scale", "normalize", "elect", "tie", "scope"}
    weights = {value["inputs"][one["sum"][0]["input"]]["name"][5]: one["weight"] for one in part["inputs"]}
    assert weights == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("demo/base + demo/x", UnknownName, "demo/x: no such input; did you mean"),
        ("demo/a + demo/b", BaseMismatch, "names no full model; begin with the base"),
        ("delta(demo/base, demo/m) + demo/a", BaseMismatch, "names no full model"),
        ("0.5*demo/base + demo/a", BaseMismatch, "takes no weight; found 0.5"),
        ("2*ties(demo/base; demo/a)", BaseMismatch, "the base takes no weight"),
        ("demo/base + ties(demo/m; demo/a)", BaseMismatch, "starts from demo/m, the recipe's base is demo/base"),
        ("ties(demo/base + demo/a; demo/b)", BaseMismatch, "starts from demo/base + demo/a"),
        ("demo/base + delta(demo/a, demo/m)", BaseMismatch, "demo/a is a sparse; delta takes two full models"),
        ("tied(demo/base; demo/a)", UnknownMethod, "did you mean ties"),
        ("ties(demo/base; demo/a, density=0)", InvalidParameter, "density"),
        ("ties(demo/base; demo/a, densty=1)", InvalidParameter, "densty"),
        ("[1, 2]*demo/base + demo/a", BaseMismatch, r"found 1\*\[1, 2\]"),
        ("slerp(demo/base; [0, 1]*demo/m)", InvalidParameter, r"slerp: takes no weights, and found \[0, 1\]"),
        ("ties(demo/base; demo/a, density=[0.5, 0])", InvalidParameter, "density is 0"),
        ("linear(demo/base; demo/a, -1*demo/b)", InvalidParameter, "linear"),
    ],
)
def test_a_recipe_that_means_nothing_is_refused(
    text: str, error: type[Exception], says: str, inputs: dict[Ref, Input]
) -> None:
    with pytest.raises(error, match=says.replace("+", r"\+")):
        canonical(parse(text), inputs)


def test_an_input_of_a_kind_that_is_not_merged_is_refused(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    foreign = Input("demo/x@main", LocalFolder(tmp_path), "", "unknown")
    with pytest.raises(InvalidPatch, match="a 'unknown' is not merged"):
        canonical(parse("demo/base + demo/x"), {**inputs, Ref("demo/x"): foreign})
