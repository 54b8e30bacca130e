"""What the comparisons with mergekit share."""

from types import SimpleNamespace

import pytest
import torch
from mergekit import sparsify


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal magnitudes, which bfloat16 has many of, mergekit takes those that its sort puts first; here ours do."""

    def argsort(values: torch.Tensor, dim: int = -1, descending: bool = False) -> torch.Tensor:
        return torch.sort(values, dim=dim, descending=descending, stable=True).indices

    def ascending(values: torch.Tensor, descending: bool = False) -> SimpleNamespace:
        return SimpleNamespace(indices=torch.sort(values, descending=True, stable=True).indices.flip(0))

    stable = SimpleNamespace(**vars(torch) | {"argsort": argsort, "sort": ascending})
    monkeypatch.setattr(sparsify, "torch", stable)
