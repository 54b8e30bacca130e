"""Schedules: what they are at a tensor, as mergekit has it, and their one form."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Call, Weighted
from adapterhub.merging.recipes.values import Schedule, make_scheduled, parameters_at, schedule, weight_at
from tests.merging.whole_mergekit import ConditionalParameter, evaluate_setting

NAMES = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.up_proj.weight"]
numbers = st.floats(-8, 8, allow_nan=False, width=32).map(float)
words = st.sampled_from(["weights", "count", "none"])
truths = st.booleans()
points = st.one_of(*(st.lists(one, min_size=1, max_size=5) for one in (numbers, words, truths)))
filters = st.sampled_from(["self_attn", "mlp", "layers.3.", "*", "", "weight", "nowhere"])
cases = st.lists(st.tuples(filters, points), max_size=4)


@given(cases=cases, rest=points, name=st.sampled_from(NAMES), layer=st.integers(0, 6), last=st.integers(1, 6))
def test_a_schedule_is_what_mergekit_evaluates(
    cases: list[tuple[str, list[Any]]], rest: list[Any], name: str, layer: int, last: int
) -> None:
    t = min(layer, last) / last
    setting = [ConditionalParameter(value=values, filter=part) for part, values in [*cases, ("*", rest)]]
    expected = evaluate_setting(name, setting, t, validate=lambda value: value)
    value = schedule([*cases, ("*", rest)])
    found = value.at(name, t) if isinstance(value, Schedule) else value
    assert found == (pytest.approx(expected, rel=1e-15, abs=1e-300) if isinstance(expected, float) else expected)


@given(cases=cases, rest=points)
def test_a_schedule_prints_as_text_that_means_it(cases: list[tuple[str, list[Any]]], rest: list[Any]) -> None:
    value = schedule([*cases, ("*", rest)])
    if isinstance(value, Schedule):
        root = parse(f"f(a, p={value})").root
        assert isinstance(root, Call)
        assert dict(root.parameters) == {"p": value}


def test_a_tensor_outside_of_layers_takes_the_first_value_and_a_single_layer_the_last() -> None:
    value = schedule([("*", [0.2, 0.8])])
    assert isinstance(value, Schedule)
    assert (value.at("lm_head.weight", None), value.at("h.0.w", 0.0), value.at("h.0.w", 1.0)) == (0.2, 0.2, 0.8)


EQUAL = [
    ("[0.5, 0.5]*a", "0.5*a"),
    ('{"*": 2}*a', "2*a"),
    ('{"mlp": 1, "*": [1, 1]}*a', "a"),
    ('{mlp: 1, "mlp.up": 3, "*": 2}*a', '{"mlp": 1, "*": 2}*a'),
    ('{"mlp": 1, "*": 2, "attn": 3}*a', '{"mlp": 1, "*": 2}*a'),
    ("[0, 1]*2*[1, 0]*a", "2*[1, 0]*[0, 1]*a"),
    ("base - 2*[0, 1]*a", "base + -2*[0,1]*a"),
    ("base - [0, 1]*a", "base - 1*[0, 1]*(1*a)"),
    ("[0, 1]*(a + b)", "([0, 1]*(a + b))"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_schedules_have_one_form(one: str, other: str) -> None:
    assert parse(one) == parse(other)
    assert parse(str(parse(one))) == parse(one)


def test_a_weight_is_its_number_times_its_schedules() -> None:
    root = parse('2*[0, 1]*{"mlp": 3, "*": 1}*a').root
    assert isinstance(root, Weighted)
    assert weight_at(root.weight, root.schedules, "h.1.mlp", 0.5) == 3.0
    assert weight_at(root.weight, root.schedules, "h.1.attn", 0.25) == 0.5


def test_each_point_of_a_parameter_is_checked_before_work() -> None:
    owner = methods()["ties"].parameters
    value = schedule([("mlp", [0.5, 1.5]), ("*", [1.0])])
    with pytest.raises(InvalidParameter, match=r"ties: density is 1\.5; expected float in \(0, 1\]"):
        make_scheduled(owner, {"density": value}, "ties")
    with pytest.raises(InvalidParameter, match="did you mean density"):
        make_scheduled(owner, {"densty": value}, "ties")
    with pytest.raises(InvalidParameter, match="normalize is 'all'"):
        make_scheduled(owner, {"normalize": schedule([("*", ["count", "all"])])}, "ties")


def test_parameters_at_a_tensor_hold_no_schedule() -> None:
    owner = methods()["ties"].parameters
    given = {"density": schedule([("*", [0.2, 0.8])]), "normalize": schedule([("*", ["count", "none"])])}
    found = parameters_at(make_scheduled(owner, given, "ties"), "h.1.w", 0.5, "ties")
    assert found == owner(density=0.5, normalize="count")


def test_a_whole_number_is_not_interpolated_to_a_broken_one() -> None:
    owner = methods()["consensus"].parameters
    made = make_scheduled(owner, {"needed": schedule([("*", [1.0, 2.0])])}, "consensus")
    assert parameters_at(made, "h.1.w", 1.0, "consensus").needed == 2
    with pytest.raises(InvalidParameter, match=r"needed is 1\.5; expected int"):
        parameters_at(made, "h.1.w", 0.5, "consensus")
