"""What the comparisons with mergekit share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mergekit import sparsify

from tests.merging.methods.tuned import folders


@pytest.fixture
def stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal magnitudes, which bfloat16 has many of, mergekit takes those that its sort puts first; here ours do."""

    def argsort(values: torch.Tensor, dim: int = -1, descending: bool = False) -> torch.Tensor:
        return torch.sort(values, dim=dim, descending=descending, stable=True).indices

    def ascending(values: torch.Tensor, descending: bool = False) -> SimpleNamespace:
        return SimpleNamespace(indices=torch.sort(values, descending=True, stable=True).indices.flip(0))

    stable = SimpleNamespace(**vars(torch) | {"argsort": argsort, "sort": ascending})
    monkeypatch.setattr(sparsify, "torch", stable)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Mapping[str, Path]]:
    roots: dict[tuple[str, str], Path] = {}

    def of(name: str, dtype: str) -> Mapping[str, Path]:
        root = roots.setdefault((name, dtype), tmp_path_factory.mktemp(f"{name}-{dtype}"))
        return folders(name, dtype, root)

    return of
