"""Searches without gradients: each asks for the value at one point after another, and learns from the answers.

An optimiser is a generator over points in [0, 1]^n that is sent the objective at each, smaller is better. It draws from
a generator of its own, so one seed gives one course, whatever else the process draws: a search that is told again what
it was told before goes the same way, which is how it is resumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

import numpy as np

from adapterhub.merging.errors import InvalidParameter

Search: TypeAlias = Generator[Sequence[float], float, None]
Optimiser: TypeAlias = Callable[[Sequence[float], int], Search]
"""Given the start, a point in [0, 1]^n, and the seed, the search. It may end by itself."""

STEP = 0.2
"""First step, as a share of each knob's range."""

_ALPHA, _GAMMA, _STABILITY, _SHRINKING = 0.602, 0.101, 10.0, 0.1


def cma(start: Sequence[float], seed: int) -> Search:
    """Covariance matrix adaptation, by the library `cma`; ends where the distribution has shrunk to nothing.

    Raises InvalidParameter where the library is not installed. Source:
    Hansen, arXiv:1604.00772; github.com/CMA-ES/pycma.
    """
    library = _library()
    generator = np.random.Generator(np.random.Philox(seed))
    options = {
        "bounds": [0, 1],
        "seed": np.nan,  # the library's own seeding would be that of the whole process
        "randn": lambda *shape: generator.standard_normal(shape),
        "verbose": -9,
        "verb_log": 0,
    }
    yield start
    evolution = library.CMAEvolutionStrategy(list(start), STEP, options)
    while not evolution.stop():
        points = evolution.ask()
        values = []
        for point in points:
            values.append((yield point))
        evolution.tell(points, values)


def spsa(start: Sequence[float], seed: int) -> Search:
    """Simultaneous perturbation: two forward passes a step, whatever the number of knobs, as MeZO takes them.

    The gain is set by the first pair, so that its step moves STEP in every direction, and no step moves more.
    Source: Spall, IEEE Trans. Automatic Control 37 (1992), with the gains of Spall, IEEE Trans. AES 34 (1998) sec. III;
    MeZO, arXiv:2305.17333 alg. 1, perturbs weights by the same estimate.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    x = np.asarray(start, float)
    yield x.tolist()
    gain = None
    for step in count():
        signs = generator.integers(0, 2, len(x)) * 2.0 - 1.0
        c = _SHRINKING / (step + 1) ** _GAMMA
        up, down = np.clip(x + c * signs, 0, 1), np.clip(x - c * signs, 0, 1)
        slope = ((yield up.tolist()) - (yield down.tolist())) / (
            up - down
        )  # never 0: at most one of the two ends is cut off
        if gain is None and np.abs(slope).mean() > 0:
            gain = STEP * (_STABILITY + 1) ** _ALPHA / np.abs(slope).mean()
        if gain is not None:
            move = gain / (_STABILITY + step + 1) ** _ALPHA * slope
            x = np.clip(x - np.clip(move, -STEP, STEP), 0, 1)
        yield x.tolist()


OPTIMISERS: Mapping[str, Optimiser] = {"cma": cma, "spsa": spsa}


def optimiser(name: str) -> Optimiser:
    """The optimiser of that name. Raises InvalidParameter, also where its library is missing."""
    if name not in OPTIMISERS:
        raise InvalidParameter(f"{name}: no such optimiser; one of {' or '.join(OPTIMISERS)}")
    if name == "cma":
        _library()
    return OPTIMISERS[name]


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where matplotlib, which only its plots need, is missing
            import cma as library
    except ImportError:
        raise InvalidParameter(
            "cma: its library is not installed; pip install 'adapterhub[tune]', or take the optimiser spsa"
        ) from None
    return library
