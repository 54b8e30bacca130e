"""The knee of gain against retention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.tuning.knee import curve, knee, knee_of


def test_the_knee_of_a_curve_with_a_corner_is_the_corner() -> None:
    """Gain comes first and costs nothing, then comes slowly and costs all: distances worked by hand."""
    strengths = [0.0, 0.25, 0.5, 0.75, 1.0]
    points = curve(strengths, [0.0, 0.4, 0.8, 0.9, 1.0], [0.0, 0.0, -0.1, -0.55, -1.0])
    assert [one.distance for one in points] == pytest.approx([0.0, 0.4, 0.7, 0.35, 0.0])
    found = knee_of(points)
    assert found is not None
    assert found.strength == 0.5


def test_the_knee_of_kneedles_own_example_is_at_its_maximum() -> None:
    """y = -1/x + 5 of the paper's figure 2: the greatest distance in normalised units lies where the slope is 1."""
    x = np.linspace(0.2, 10, 400)
    y = -1 / x + 5
    scaled_x, scaled_y = (x - x[0]) / (x[-1] - x[0]), (y - y[0]) / (y[-1] - y[0])
    found = knee(list(scaled_x), list(scaled_y), list(-scaled_x))
    at = x[int(np.argmax([one or 0.0 for one in found]))]
    # dy/dx normalised: (1/x²)·(x_max - x_min)/(y_max - y_min) = 1
    assert at == pytest.approx(np.sqrt((x[-1] - x[0]) / (y[-1] - y[0])), abs=0.03)


def test_strengths_past_the_greatest_gain_are_none() -> None:
    points = curve([0, 1, 2, 3], [0.0, 1.0, 0.5, 0.2], [0.0, -0.1, -0.2, -0.9])
    assert [one.distance is None for one in points] == [False, False, True, True]


def test_a_patch_that_costs_nothing_is_taken_at_its_greatest_gain() -> None:
    found = knee_of(curve([0, 0.5, 1], [0.0, 0.3, 0.4], [0.0, 0.1, 0.0]))
    assert found is not None
    assert found.strength == 1


def test_a_patch_that_gains_nothing_has_no_knee() -> None:
    assert knee_of(curve([0, 1], [0.0, -0.1], [0.0, -0.5])) is None
    assert knee_of(curve([0], [0.0], [0.0])) is None


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=12),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
)
def test_units_do_not_move_the_knee(rows: list[tuple[float, float]], a: float, b: float) -> None:
    gains, kept = [0.0, *(one for one, _ in rows)], [0.0, *(one for _, one in rows)]
    if 0 < max(gains) < 1e-100 or 0 < -min(kept) < 1e-100:
        return
    strengths = list(range(len(gains)))
    one = knee(strengths, gains, kept)
    other = knee(strengths, [a * x for x in gains], [b * x for x in kept])
    assert [x is None for x in one] == [x is None for x in other]
    assert [x for x in one if x is not None] == pytest.approx([x for x in other if x is not None], abs=1e-9)
