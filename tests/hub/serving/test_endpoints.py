"""What a list of the likeliest tokens says of all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import EngineUnavailable
from adapterhub.hub.serving.endpoints import spread


@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=40), st.data())
def test_a_list_of_some_gives_a_distribution_that_agrees_with_it(parts: list[float], data: st.DataObject) -> None:
    total = math.fsum(parts)
    logprobs = sorted((math.log(part / total) for part in parts), reverse=True)
    listed = data.draw(st.integers(1, len(logprobs)))
    found = spread(dict(enumerate(logprobs[:listed])), len(logprobs), "x").double()
    assert found[:listed].tolist() == pytest.approx(logprobs[:listed], abs=1e-5)
    rest = found[listed:]
    assert rest.numel() == 0 or float(rest.max()) <= logprobs[listed - 1] + 1e-5
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("told", [{}, {7: -1.0}, {-1: -1.0}])
def test_tokens_that_are_not_there_are_refused(told: dict[int, float]) -> None:
    with pytest.raises(EngineUnavailable, match="x: its endpoint told of other tokens than the 7 that are known here"):
        spread(told, 7, "x")
