"""Random projections against their own matrices, column by column."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.ops.philox import Stream
from adapterhub.merging.ops.projections import PROJECTIONS, TRANSPOSED


@pytest.mark.parametrize("name", PROJECTIONS)
@given(count=st.integers(1, 20), numel=st.integers(1, 70), seed=st.integers(0, 2**63 - 1))
def test_the_transposed_projection_is_the_transpose(name: str, count: int, numel: int, seed: int) -> None:
    stream = Stream.of(seed, "w")
    P = np.stack([PROJECTIONS[name](row, numel, stream, "uniform") for row in np.eye(count)], 1)  # (numel, count)
    g = np.linspace(-1, 1, numel)
    np.testing.assert_allclose(TRANSPOSED[name](g, count, stream, "uniform"), P.T.astype(np.float64) @ g, atol=1e-5)
