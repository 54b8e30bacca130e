"""Everything here computes on a GPU and skips without one: `make gpu`.

`AHTEST_DEVICE=cpu` has the same tests compute on the CPU, which says that the tests themselves work, and no more.
"""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    wanted = os.environ.get("AHTEST_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device(wanted)
