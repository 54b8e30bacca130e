"""The search itself: a budget of candidates, each scored once, the best of which is the answer.

What scores a candidate, what stops the search, and where trials are kept, is the caller's. Never imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub.merging.errors import Cancelled, InvalidParameter, MergingError
from adapterhub.merging.recipes.nodes import Recipe
from adapterhub.merging.tuning.knobs import Space
from adapterhub.merging.tuning.optimisers import optimiser


@dataclass(frozen=True)
class Course:
    """How to search. evaluations: most candidates that are scored, 1 or more. penalty: factor of mean |w|, 0 or
    more; LoraHub takes 0.05 (arXiv:2307.13269 sec. 3.3). is_larger_better: of the scores.
    """

    optimiser: str = "cma"
    seed: int = 0
    evaluations: int = 40
    penalty: float = 0.0
    is_larger_better: bool = False

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not 0 <= self.penalty < math.inf:
            raise InvalidParameter("a search takes 1 evaluation or more, and a penalty of 0 or more")


@dataclass(frozen=True)
class Trial:
    """One candidate. point: values by knob. score: None where the candidate was refused, for the reason given."""

    number: int
    point: Mapping[str, float]
    expression: str
    score: float | None
    objective: float | None
    refused: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"point": dict(self.point)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trial:
        return cls(**value)


@dataclass(frozen=True)
class Tuned:
    """What a search found. ended: "evaluations", "time" or "converged"."""

    best: Trial
    trials: tuple[Trial, ...]
    ended: str

    @property
    def start(self) -> Trial:
        """The recipe as it was given."""
        return self.trials[0]

    def as_json(self) -> dict[str, Any]:
        """What was found, JSON values only, without the trials but the first."""
        return {
            "recipe": self.best.expression,
            "point": dict(self.best.point),
            "score": self.best.score,
            "objective": self.best.objective,
            "start": self.start.as_json(),
            "evaluations": len(self.trials),
            "refused": sum(one.refused is not None for one in self.trials),
            "ended": self.ended,
        }


def search(
    space: Space,
    course: Course,
    score: Callable[[Recipe, Mapping[str, float]], float],
    *,
    done: Sequence[Trial] = (),
    record: Callable[[Trial], None] = lambda trial: None,
    is_over: Callable[[], bool] = lambda: False,
    refusals: tuple[type[Exception], ...] = (MergingError,),
) -> Tuned:
    """The best of the candidates that an optimiser asks for, the first of them the recipe as it is.

    score: of a recipe and its point; an error among `refusals` that it raises refuses the candidate. done: trials of
    an earlier run, in order, which are not scored again. record: called with each trial that is. is_over: whether
    time is up, asked before each. Raises InvalidParameter where `done` is of another search, and what `score` raises
    for the first.
    """
    trials: list[Trial] = []
    ended = "converged"
    asking = optimiser(course.optimiser)([knob.start_at for knob in space.knobs], course.seed)
    place = next(asking)
    while True:
        if len(trials) == course.evaluations or (len(trials) >= len(done) and trials and is_over()):
            ended = "evaluations" if len(trials) == course.evaluations else "time"
            break
        point = space.point(place) if trials else space.start
        trials.append(_trial(space, course, score, trials, point, done, refusals))
        if len(trials) > len(done):
            record(trials[-1])
        try:
            place = asking.send(_told(trials))
        except StopIteration:
            break
    scored = [one for one in trials if one.objective is not None]
    return Tuned(min(scored, key=lambda one: one.objective or 0.0), tuple(trials), ended)


def _trial(
    space: Space,
    course: Course,
    score: Callable[[Recipe, Mapping[str, float]], float],
    before: Sequence[Trial],
    point: Mapping[str, float],
    done: Sequence[Trial],
    refusals: tuple[type[Exception], ...],
) -> Trial:
    number = len(before)
    if number < len(done):
        if dict(done[number].point) != dict(point):
            raise InvalidParameter(
                f"trial {number} of the journal is at {dict(done[number].point)}, and this search comes to "
                f"{dict(point)} there: it is the journal of another search, or of another version; begin a new one"
            )
        return done[number]
    recipe = space.recipe_at(point)
    same = next((one for one in before if one.point == point), None)
    if same is not None:
        return Trial(number, point, str(recipe), same.score, same.objective, same.refused)
    try:
        found = score(recipe, point)
    except refusals as error:
        if not before or isinstance(error, Cancelled):
            raise
        return Trial(number, point, str(recipe), None, None, str(error))
    if not math.isfinite(found):
        if not before:
            raise InvalidParameter(f"{recipe}: scores {found}; a search needs a number to begin with")
        return Trial(number, point, str(recipe), None, None, f"scores {found}")
    signed = -found if course.is_larger_better else found
    return Trial(number, point, str(recipe), found, signed + course.penalty * space.mean_weight(point))


def _told(trials: Sequence[Trial]) -> float:
    """What the optimiser hears of the last trial: of a refused one, that it is worse than all before."""
    if trials[-1].objective is not None:
        return trials[-1].objective
    return max(_objectives(trials)) + 1.0


def _objectives(trials: Sequence[Trial]) -> Iterator[float]:
    return (one.objective for one in trials if one.objective is not None)
