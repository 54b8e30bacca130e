"""Differences of recipes: what is told of each kind of change, and that equal recipes have none."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapterhub.merging import native
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.recipes.canonical import Input, Ref, canonical
from adapterhub.merging.recipes.differences import as_json, differences
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.head_policy import Heads
from adapterhub.merging.recipes.nodes import Form
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy
from tests.merging import tiny

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Ref, Input]:
    """Models base and m, sparse patches a, b and c, and a newer commit of a with other bytes."""
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(["base", "m"]):
        tiny.saved(tiny.llama(seed=seed), root / name)
    found = {Ref(f"demo/{name}"): Input(f"demo/{name}@{OLD}", LocalFolder(root / name)) for name in ("base", "m")}
    for number, (name, commit) in enumerate([("a", OLD), ("b", OLD), ("c", OLD), ("a", NEW)]):
        folder = root / f"{name}{number}"
        delta = np.zeros((16,), np.float32)
        delta[number] = 1.0
        native.write_patch(folder, sites={"model.norm.weight": native.sparse(delta)}, base={})
        ref = Ref(f"demo/{name}", "new" if commit == NEW else None)
        found[ref] = Input(f"demo/{name}@{commit}", LocalFolder(folder), "", "sparse")
    return found


def told(before: str, after: str, inputs: dict[Ref, Input], **options: Any) -> list[str]:
    old = json.loads(canonical(parse(before), inputs))
    new = json.loads(canonical(parse(after), inputs, **options))
    return [str(one) for one in differences(old, new)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("demo/base + demo/a + demo/b", "demo/base + demo/b + demo/a"),
        ("ties(demo/base; demo/a, 2*demo/b)", "demo/base + ties(2*demo/b, demo/a)"),
    ],
)
def test_recipes_that_mean_the_same_have_no_difference(before: str, after: str, inputs: dict[Ref, Input]) -> None:
    assert told(before, after, inputs) == []


CHANGES = [
    ("demo/base + 0.5*demo/a", "demo/base + [0.2, 0.8]*demo/a", ["weight of demo/a: 0.5, now [0.2, 0.8]"]),
    (
        "ties(demo/base; demo/a, demo/b, density=0.5)",
        'ties(demo/base; 2*{"mlp": 1, "*": 0}*demo/a, demo/b, density=[0.2, 0.4])',
        [
            "ties.density: 0.5, now [0.2, 0.4]",
            'weight of demo/a, in ties: 1, now 2*{"mlp": 1, "*": 0}',
        ],
    ),
    ("demo/base + demo/a", "demo/base + 0.5*demo/a", ["weight of demo/a: 1, now 0.5"]),
    (
        "demo/base + demo/a",
        "demo/base + demo/a@new",
        ["input demo/a: moved from 0123456789ab to 89abcdef0123"],
    ),
    (
        "demo/base + demo/a",
        "demo/base + demo/a + 2*demo/b",
        ["input demo/b: added at 0123456789ab", "demo/b: added with the weight 2"],
    ),
    (
        "demo/base + demo/a - demo/b",
        "demo/base + demo/a",
        ["input demo/b: removed at 0123456789ab", "demo/b: removed with the weight -1"],
    ),
    (
        "ties(demo/base; demo/a, demo/b, density=0.2)",
        "ties(demo/base; demo/a, 0.5*demo/b, density=0.5)",
        ["ties.density: 0.2, now 0.5", "weight of demo/b, in ties: 1, now 0.5"],
    ),
    (
        "ties(demo/base; demo/a, demo/b, density=0.2)",
        "dare_ties(demo/base; demo/a, demo/b, density=0.2, seed=1)",
        ["method: ties, now dare_ties"],
    ),
    (
        "ties(demo/base; demo/a, demo/b)",
        "ties(demo/base; demo/a, demo/b) + demo/b",
        ["demo/b: added with the weight 1"],
    ),
    (
        "della(demo/base; ties(demo/a, demo/b, density=0.3), demo/c)",
        "della(demo/base; ties(demo/a, demo/b, density=0.4), demo/c)",
        ["ties.density, in della: 0.3, now 0.4"],
    ),
    (
        "demo/base + demo/a",
        "demo/m + demo/a",
        [
            "input demo/base: removed at 0123456789ab",
            "input demo/m: added at 0123456789ab",
            "base: demo/base, now demo/m",
        ],
    ),
    (
        "demo/base + demo/a + demo/a@new",
        "demo/base + demo/a + 2*demo/a@new",
        ["weight of demo/a@89abcdef0123: 1, now 2"],
    ),
]


@pytest.mark.parametrize(("before", "after", "said"), CHANGES)
def test_each_change_is_told(before: str, after: str, said: list[str], inputs: dict[Ref, Input]) -> None:
    found = told(before, after, inputs)
    assert [one for one in said if one not in found] == []
    if before.startswith("ties") and after.startswith("dare"):
        # what the two methods do not share is no change of a value
        assert all("seed" not in one and "elect" not in one for one in found)
    else:
        assert len(found) == len(said)


def test_the_other_way_round_tells_the_other_value(inputs: dict[Ref, Input]) -> None:
    assert told("demo/base + 2*demo/a", "demo/base + demo/a", inputs) == ["weight of demo/a: 2, now 1"]


def test_what_the_result_shall_be_is_told_too(inputs: dict[Ref, Input]) -> None:
    expression = "demo/base + demo/a"
    assert told(expression, expression, inputs, dtype="BF16") == ["dtype: default, now BF16"]
    assert told(expression, expression, inputs, as_kind="lora") == ["as: default, now lora"]


def test_settings_name_inputs_and_differ_member_by_member(inputs: dict[Ref, Input]) -> None:
    expression = "linear(demo/base; demo/m, demo/a)"
    kept = Heads("keep", Ref("demo/m"))
    assert told(expression, expression, inputs, heads=kept) == ["heads: default, now keep:demo/m"]
    union, of_m = (
        json.loads(canonical(replace(parse(expression), form=Form(tokenizer=one)), inputs))
        for one in (TokenizerPolicy("union"), TokenizerPolicy(Ref("demo/m"), pad_to_multiple_of=8))
    )
    assert [str(one) for one in differences(union, of_m)] == [
        "tokenizer.pad_to_multiple_of: default, now 8",
        "tokenizer.source: union, now demo/m",
    ]


def test_stacks_differ_slice_by_slice(inputs: dict[Ref, Input]) -> None:
    before, after = "stack(demo/base[0:1], demo/base[1:2])", "stack(demo/base[0:1], demo/m[0:1], demo/m[1:2])"
    inputs = {
        replace(ref, layers=layers): replace(one, kind="model")
        for ref, one in inputs.items()
        for layers in ((0, 1), (1, 2))
    }
    assert told(before, before, inputs) == []
    assert told(before, after, inputs) == [
        "input demo/base[1:2]: removed at 0123456789ab",
        "input demo/m[0:1]: added at 0123456789ab",
        "input demo/m[1:2]: added at 0123456789ab",
        "base, in slice 2: demo/base[1:2], now demo/m[0:1]",
        "base, in slice 3: added, demo/m[1:2]",
    ]
    weighed = "stack(demo/base[0:1], task_arithmetic(demo/base[1:2]; 2*demo/m[1:2]))"
    assert told(weighed.replace("2*", "3*"), weighed, inputs) == ["weight of demo/m[1:2], in slice 2: 3, now 2"]


def test_differences_are_json(inputs: dict[Ref, Input]) -> None:
    old, new = (json.loads(canonical(parse(f"demo/base + {k}*demo/a"), inputs)) for k in (1, 2))
    [one] = json.loads(json.dumps(as_json(differences(old, new))))
    assert one == {
        "what": "weight",
        "of": "demo/a",
        "before": 1.0,
        "after": 2.0,
        "place": "",
        "text": "weight of demo/a: 1, now 2",
    }


def test_what_a_later_version_says_of_a_part_is_told_as_it_stands(inputs: dict[Ref, Input]) -> None:
    old = json.loads(canonical(parse("ties(demo/base; demo/a, demo/b)"), inputs))
    new = json.loads(json.dumps(old))
    new["sum"][0]["inputs"][0]["gradient"] = [0, 1]
    [one] = differences(old, new)
    assert str(one).endswith(".gradient, in ties: default, now [0, 1]")


def test_layers_of_one_model_are_told_apart(inputs: dict[Ref, Input]) -> None:
    old = json.loads(canonical(parse("demo/base + demo/a"), inputs))
    new = json.loads(json.dumps(old))
    place = next(number for number, one in enumerate(new["inputs"]) if one["name"].startswith("demo/base"))
    new["inputs"][place]["layers"] = [0, 8]
    assert [str(one) for one in differences(old, new)] == [
        "input demo/base: removed at 0123456789ab",
        "input demo/base[0:8]: added at 0123456789ab",
        "base: demo/base, now demo/base[0:8]",
    ]


def test_compositions_differ_in_operator_parameters_and_members(inputs: dict[Ref, Input]) -> None:
    before = "proxy(demo/m; 0.5*(demo/base + demo/a), anti=demo/base)"
    after = "proxy(demo/m; 0.7*(demo/base + 2*demo/a), anti=demo/m, alpha=2)"
    assert told(before, before, inputs) == []
    assert told(before, after, inputs) == [
        "proxy.alpha: 1, now 2",
        "weight of expert, in member 3: 0.5, now 0.7",
        "base, in member 2: demo/base, now demo/m",
        "weight of demo/a, in member 3: 1, now 2",
    ]
    emulated = "eft(demo/m; demo/base + demo/a, base=demo/base)"
    assert "operator: eft, now contrast" in told(emulated, "contrast(demo/m; demo/base)", inputs)
    assert told("demo/m", "ensemble(demo/m, demo/base)", inputs)[-1].startswith("base, in member 2")
