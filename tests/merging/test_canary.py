"""The canary's arithmetic on numbers made by hand; against a live server in tests/hub/api/openai/test_canary.py."""

import math

import pytest

from adapterhub.merging.canary import Rows, Told, distance, judge

IDS = {"a": [0], "b": [1], "c": [2], "?": [3, 4]}


def rows(*probabilities: float) -> Rows:
    return Rows([[math.log(one) for one in probabilities]], IDS)


def told(**probabilities: float) -> list[Told]:
    return [[(name, math.log(one)) for name, one in probabilities.items()]]


BASE = rows(0.5, 0.2, 0.1, 0.1, 0.1)
PATCHED = rows(0.1, 0.6, 0.1, 0.1, 0.1)
OF_BASE = told(a=0.5, b=0.2, c=0.1)
OF_PATCHED = told(b=0.6, a=0.1, c=0.1)


def test_tokens_are_told_apart_by_texts_that_one_token_has() -> None:
    shared: list[Told] = [[("b", math.log(0.6)), ("?", -100.0), ("nobody's", -100.0)]]
    assert distance(shared, PATCHED) == (0.0, 1 / 3)
    apart, matched = distance(shared, BASE)
    assert apart == pytest.approx(math.log(3))
    assert matched == 1 / 3


def test_tokens_by_number_need_no_text() -> None:
    assert distance([[("token_id:3", math.log(0.1)), ("token_id:x", 0.0)]], BASE) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("adapter", "its_base", "expected"),
    [
        (OF_PATCHED, OF_BASE, "served"),
        (OF_PATCHED, None, "served"),
        (told(b=0.59, a=0.105, c=0.1), OF_BASE, "served"),
        (OF_BASE, OF_BASE, "serves the base"),
        (OF_BASE, None, "serves the base"),
        (told(a=0.49, b=0.205, c=0.1), OF_BASE, "serves the base"),
        (told(c=0.9, a=0.05, b=0.02), OF_BASE, "serves something else"),
        # half of the patch, as where the scale is another
        (told(b=0.35, a=0.25, c=0.1), OF_BASE, "serves something else"),
        # its base is another than ours
        (OF_PATCHED, told(c=0.9, a=0.05, b=0.02), "cannot tell"),
        # but one answer under both names is the base whatever ours is
        (told(c=0.9, a=0.05, b=0.02), told(c=0.9, a=0.05, b=0.02), "serves the base"),
        # and one that has the patch under both names, as llama.cpp's server, has no base to be told from
        (OF_PATCHED, OF_PATCHED, "cannot tell"),
        ([[("nobody's", -1.0)]], None, "cannot tell"),
    ],
)
def test_the_verdict_is_of_what_is_near(adapter: list[Told], its_base: list[Told] | None, expected: str) -> None:
    found = judge(adapter, its_base, PATCHED, BASE)
    assert found.verdict == expected, found.why


def test_a_patch_that_changes_nothing_here_proves_nothing() -> None:
    found = judge(OF_BASE, OF_BASE, BASE, BASE)
    assert found.verdict == "cannot tell"
    assert "changes these prompts by 0" in found.why


def test_numbers_that_could_not_be_had_are_null() -> None:
    found = judge([[("nobody's", -1.0)]], None, PATCHED, BASE).as_json()
    assert (found["to_patched"], found["to_its_base"], found["matched"]) == (None, None, 0.0)
