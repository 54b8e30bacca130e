"""Searches over recipes: what is changed, where the search ends, and that a resumed one is the unbroken one."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from adapterhub.merging.errors import InvalidParameter, NonFinite
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Recipe, Ref
from adapterhub.merging.tuning.journal import Journal
from adapterhub.merging.tuning.knobs import Space, space
from adapterhub.merging.tuning.optimisers import OPTIMISERS
from adapterhub.merging.tuning.search import Course, Trial, search

BASE = Ref("base")
TWO = "base + 0.2*a + b"
OPTIMUM = {"a": 0.7, "b": -0.4}


def of(text: str, **options: object) -> Space:
    return space(parse(text), BASE, **options)  # type: ignore[arg-type]


def bowl(recipe: Recipe, point: Mapping[str, float]) -> float:
    """Least at OPTIMUM, where it is 0."""
    return sum((point[name] - at) ** 2 for name, at in OPTIMUM.items())


def test_the_weight_of_each_input_but_the_base_is_a_knob() -> None:
    found = of("ties(base; 0.5*a, delta(m, n), density=0.2) + 0.3*slerp(c, t=0.5) - 0.2*(d + 0.9*a)")
    assert [(one.name, one.start) for one in found.knobs] == [
        ("a", 0.5),
        ("delta(m, n)", 1.0),
        ("slerp", 0.3),
        ("d", 1.0),
        ("a#2", 0.9),
    ]


def test_values_go_where_the_knobs_are() -> None:
    found = of("ties(base; 0.5*a, b, density=0.2) - 0.3*c", parameters={"density": None})
    assert [one.name for one in found.knobs] == ["a", "b", "ties.density", "c"]
    at = found.recipe_at({"a": 1.0, "b": -0.25, "ties.density": 0.9, "c": 0.0})
    assert str(at) == "ties(base; a, -0.25*b, density=0.9) + 0*c"
    assert parse(str(at)) == at


def test_the_recipe_at_its_own_values_is_the_recipe() -> None:
    for text in (TWO, "ties(base; 0.5*a, b, density=0.2) - 0.3*c", "base + 0.5*model_stock(a, b)"):
        found = of(text)
        assert found.recipe_at({one.name: one.start for one in found.knobs}) == parse(text)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("base", {}, "no weight to search"),
        ("base + 2*a", {}, "outside of -1.5 to 1.5"),
        ("base + a", {"parameters": {"density": None}}, "no method"),
        ("base + slerp(a, b)", {"parameters": {"density": None}}, "no method"),
        ("ties(base; a)", {"parameters": {"elect": None}}, "no number"),
        ("ties(base; a)", {"parameters": {"density": (0.5, 3.0)}}, "density is 3"),
        ("base + a", {"weights": (1.0, 0.0)}, "lower end comes first"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidParameter, match=told):
        of(text, **options)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_each_optimiser_finds_the_bottom_of_a_bowl(name: str) -> None:
    found = search(of(TWO), Course(optimiser=name, seed=3, evaluations=150), bowl)
    assert found.best.point == pytest.approx(OPTIMUM, abs=0.05)
    assert found.start.expression == TWO
    assert len(found.trials) <= 150


@pytest.mark.parametrize("name", OPTIMISERS)
def test_one_seed_is_one_course_and_leaves_the_global_generator_alone(name: str) -> None:
    state = np.random.get_state()[1].tobytes()  # type: ignore[index]
    one, other, third = (
        search(of(TWO), Course(optimiser=name, seed=seed, evaluations=20), bowl).trials for seed in (5, 5, 6)
    )
    assert one == other
    assert one != third
    assert np.random.get_state()[1].tobytes() == state  # type: ignore[index]


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("killed_after", [1, 7, 8, 23])
def test_a_resumed_search_is_the_unbroken_one(name: str, killed_after: int, tmp_path: Path) -> None:
    course = Course(optimiser=name, seed=1, evaluations=30, penalty=0.05)
    unbroken = search(of(TWO), course, bowl)
    path = tmp_path / "journal.jsonl"
    first = Journal(path, {"expression": TWO})
    with pytest.raises(KeyboardInterrupt):
        search(of(TWO), course, bowl, record=_killed(first, killed_after))
    with path.open("a") as file:
        file.write('{"number": 9, "po')  # what a kill leaves of a line
    again = Journal(path, {"expression": TWO})
    assert len(again.done) == killed_after
    scored: list[Trial] = []

    def record(trial: Trial) -> None:
        scored.append(trial)
        again.record(trial)

    resumed = search(of(TWO), course, bowl, done=again.done, record=record)
    assert resumed == unbroken
    assert len(scored) == 30 - killed_after
    lines = path.read_text().splitlines()
    assert [Trial.from_json(json.loads(line)) for line in lines[1:]] == list(unbroken.trials)


def _killed(journal: Journal, after: int):  # type: ignore[no-untyped-def]
    def record(trial: Trial) -> None:
        if trial.number == after:
            raise KeyboardInterrupt
        journal.record(trial)

    return record


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"expression": TWO})
    with pytest.raises(InvalidParameter, match="another search"):
        Journal(path, {"expression": "base + a"})
    search(of(TWO), Course(seed=1, evaluations=9), bowl, record=journal.record)
    with pytest.raises(InvalidParameter, match="another search"):
        search(of(TWO), Course(seed=2, evaluations=9), bowl, done=Journal(path, {"expression": TWO}).done)


def test_a_refused_candidate_is_one_trial_and_the_search_goes_on() -> None:
    def score(recipe: Recipe, point: Mapping[str, float]) -> float:
        if point["a"] > 0.6:
            raise NonFinite("w", "the result")
        return bowl(recipe, point)

    found = search(of(TWO), Course(seed=0, evaluations=80), score)
    refused = [one for one in found.trials if one.refused]
    assert refused
    assert all(one.score is None and "NaN" in (one.refused or "") for one in refused)
    assert 0.5 < found.best.point["a"] <= 0.6
    with pytest.raises(NonFinite):
        search(of("base + 0.9*a + b"), Course(), score)


def test_the_penalty_is_lorahubs_mean_of_absolute_weights() -> None:
    found = search(of(TWO), Course(evaluations=10, penalty=0.05), bowl)
    for one in found.trials:
        assert one.score is not None
        mean = (abs(one.point["a"]) + abs(one.point["b"])) / 2
        assert one.objective == pytest.approx(one.score + 0.05 * mean, rel=1e-12)


def test_larger_scores_are_sought_where_they_are_better() -> None:
    course = Course(seed=0, evaluations=120, is_larger_better=True)
    assert search(of(TWO), course, lambda recipe, point: -bowl(recipe, point)).best.point == pytest.approx(
        OPTIMUM, abs=0.05
    )


def test_time_ends_a_search_but_not_before_its_first_candidate() -> None:
    found = search(of(TWO), Course(), bowl, is_over=lambda: True)
    assert (found.ended, len(found.trials)) == ("time", 1)
