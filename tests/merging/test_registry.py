"""Parameters as data, and their checks."""

from dataclasses import dataclass
from typing import Any

import pytest

from adapterhub.merging.errors import InvalidParameter, UnknownMethod
from adapterhub.merging.methods import methods
from adapterhub.merging.registry import find_method, make_parameters, parameter, parameters_of


@dataclass(frozen=True)
class Example:
    density: float = parameter(1.0, "fraction kept", low=0, high=1, is_low_open=True)
    steps: int = parameter(3, "how often", low=1)
    elect: str = parameter("weighted", "which signs", choices=("weighted", "unweighted"))
    is_exact: bool = parameter(False, "exactly")


def test_parameters_carry_their_range_and_help() -> None:
    assert [(one.name, one.type, one.range) for one in parameters_of(Example)] == [
        ("density", "float", "(0, 1]"),
        ("steps", "int", "[1, ∞)"),
        ("elect", "str", "weighted or unweighted"),
        ("is_exact", "bool", "true or false"),
    ]


def test_values_are_taken_in_the_parameter_s_type() -> None:
    made = make_parameters(Example, {"density": 1, "steps": 2.0, "is_exact": True}, "example")
    assert made == Example(density=1.0, steps=2, is_exact=True)
    assert (type(made.density), type(made.steps)) == (float, int)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("density", 0),
        ("density", 1.1),
        ("density", float("nan")),
        ("density", True),
        ("density", "much"),
        ("steps", 1.5),
        ("steps", 0),
        ("elect", "some"),
        ("elect", 1),
        ("is_exact", 1),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter, match=f"example: {name} is"):
        make_parameters(Example, {name: value}, "example")


def test_an_unknown_parameter_is_refused_with_a_near_one() -> None:
    with pytest.raises(InvalidParameter, match="no parameter 'densty'; did you mean density"):
        make_parameters(Example, {"densty": 1}, "example")


def test_an_unknown_method_is_refused_with_a_near_one() -> None:
    with pytest.raises(UnknownMethod, match="did you mean ties"):
        find_method("tied", methods())
