"""Every method that mergekit has, tensor by tensor, against mergekit 0.1.5 itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from mergekit import merge_methods as mergekit
from mergekit import sparsify

from adapterhub.merging.methods import methods
from adapterhub.merging.ops.draws import chosen
from adapterhub.merging.ops.sparsify import keep_ranked
from adapterhub.merging.registry import MergeSite

NAME = "model.layers.0.w.weight"
SHAPES = [(24, 16), (40,), (1, 9), (9, 1), (3, 4, 5)]


@dataclass(frozen=True)
class Case:
    """One method with ours and mergekit's parameters. models: beside the base. has_base: mergekit is given it too."""

    method: str
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    models: int = 3
    weights: Sequence[float] = ()
    has_base: bool = True

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{key}={value}" for key, value in self.ours.items())])


WEIGHTS = (0.5, -0.25, 0.8)
CASES = [
    Case("linear", weights=(0.5, 0.25, 0.8), has_base=False),
    Case("task_arithmetic", {"scale": 0.7}, {"lambda": 0.7}, weights=WEIGHTS),
    Case("task_arithmetic", {"normalize": True}, {"normalize": True}, weights=WEIGHTS),
    Case("ties", {"density": 0.3}, {"density": 0.3, "normalize": True}, weights=WEIGHTS),
    Case("ties", {"density": 0.3, "normalize": "none"}, {"density": 0.3, "normalize": False}, weights=WEIGHTS),
    Case("breadcrumbs", {"density": 0.5, "gamma": 0.1}, {"density": 0.5, "gamma": 0.1}, weights=WEIGHTS),
    Case("breadcrumbs", {"density": 0.5, "gamma": 0.0}, {"density": 0.5, "gamma": 0.0}, weights=WEIGHTS),
    Case("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}, {"density": 0.5, "gamma": 0.1}, weights=WEIGHTS),
    Case("slerp", {"t": 0.3}, {"t": 0.3}, models=1),
    Case("slerp", {"t": 0.0}, {"t": 0.0}, models=1),
    Case("nuslerp", models=2, weights=(0.4, 0.8)),
    Case("nuslerp", {"of": "weights"}, models=2, weights=(0.4, 0.8), has_base=False),
    Case("nuslerp", {"flatten": False}, {"nuslerp_flatten": False}, models=2, weights=(0.4, 0.8)),
    Case(
        "nuslerp",
        {"flatten": False, "row_wise": True},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        models=2,
        weights=(0.4, 0.8),
    ),
    Case("multislerp", weights=(0.5, 0.25, 0.8)),
    Case("multislerp", {"of": "weights"}, weights=(0.5, 0.25, 0.8), has_base=False),
    # iterated to the end: at the default tolerance results may differ by 1e-5
    Case("karcher", {"tol": 1e-8, "max_iter": 100}, {"tol": 1e-8, "max_iter": 100}, has_base=False),
    Case("model_stock"),
    Case("model_stock", {"filter_wise": True}, {"filter_wise": True}),
    Case("sce", {"select_topk": 0.4}, {"select_topk": 0.4}),
    Case("sce"),
    Case("nearswap", {"t": 0.02}, {"t": 0.02}, models=1),
    Case("arcee_fusion", models=1),
    Case("passthrough", {"scale": 1.5}, {"scale": 1.5}, models=1, has_base=False),
    Case("ram"),
    Case("ramplus_tl", {"r": 0.3, "alpha": 0.5}, {"r": 0.3, "alpha": 0.5}),
]


def tensors(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base, and models that differ from it here and there, as fine-tuned ones do."""
    generator = torch.Generator().manual_seed(11)
    base = torch.randn(shape, generator=generator).to(dtype)
    deltas = [0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    moved = [torch.rand(shape, generator=generator) < 0.7 for _ in range(count)]
    models = [(base.float() + delta * where).to(dtype) for delta, where in zip(deltas, moved, strict=True)]
    return base, models


def ours(case: Case, base: torch.Tensor, models: Sequence[torch.Tensor]) -> torch.Tensor:
    """The merged tensor: deltas taken and added in float32, rounded once."""
    spec = methods()[case.method]
    wide = base.float()
    digests = tuple(f"sha256:{number}" for number in range(len(models)))
    site = MergeSite(NAME, wide, digests)
    weights = list(case.weights) or [1.0] * len(models)
    delta = spec.merge([one.float() - wide for one in models], weights, spec.parameters(**case.ours), site)
    return (wide + delta).to(base.dtype)


def theirs(case: Case, base: torch.Tensor, models: Sequence[torch.Tensor]) -> torch.Tensor:
    parameters = dict(case.theirs)
    given = [base, *models] if case.has_base else list(models)
    if case.weights:
        parameters["weight"] = list(case.weights)
    merged: torch.Tensor = mergekit.merge_tensors(
        given,
        case.method,
        parameters=parameters,
        base_index=0 if case.has_base else None,
        dtype=torch.float32,
        out_dtype=base.dtype,
    )
    return merged


def error(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    """How many roundings the worst entry is off, the float32 of the sums allowed for."""
    allowed = torch.finfo(dtype).eps * expected.double().abs() + 16 * torch.finfo(torch.float32).eps
    return float(((found.double() - expected.double()).abs() / allowed).max()) if found.numel() else 0.0


DTYPES = [torch.float32, torch.bfloat16]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


@both_dtypes
@every_shape
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("stable")
def test_is_what_mergekit_makes(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, models = tensors(shape, case.models, dtype)
    assert error(ours(case, base, models), theirs(case, base, models), dtype) <= 1.0


def test_every_method_of_mergekit_is_here() -> None:
    assert {one.spec.name for one in mergekit.registered_methods()} <= set(methods())


RANDOM = [
    Case("dare_linear", {"density": 0.4, "rescale": "l1"}, {"density": 0.4, "rescale": True}, weights=WEIGHTS),
    Case("dare_linear", {"density": 0.4, "rescale": "none"}, {"density": 0.4, "rescale": False}, weights=WEIGHTS),
    Case("dare_ties", {"density": 0.4, "rescale": "l1"}, {"density": 0.4, "rescale": True}, weights=WEIGHTS),
    Case("della", {"density": 0.4, "rescale": "l1"}, {"density": 0.4, "rescale": True}, weights=WEIGHTS),
    Case("della_linear", {"density": 0.4, "rescale": "l1"}, {"density": 0.4, "rescale": True}, weights=WEIGHTS),
]


@both_dtypes
@pytest.mark.parametrize("shape", [(24, 16), (40,), (1, 9)], ids=str)
@pytest.mark.parametrize("case", RANDOM, ids=str)
@pytest.mark.usefixtures("stable")
def test_is_what_mergekit_makes_with_our_masks(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of mergekit's own masks only their statistics could be compared: they come from one global generator."""
    base, models = tensors(shape, case.models, dtype)
    drawn = iter(range(case.models))

    def bernoulli(probability: torch.Tensor) -> torch.Tensor:
        number = next(drawn)
        delta = models[number].float() - base.float()
        likely = 0.4 if "dare" in case.method else keep_ranked(delta, 0.4, 0.15)
        if isinstance(likely, torch.Tensor):
            torch.testing.assert_close(probability.view(shape).double(), likely, rtol=1e-5, atol=1e-5)
        return chosen(likely, 0, f"sha256:{number}", NAME, delta).view(probability.shape).to(probability.dtype)

    monkeypatch.setattr(sparsify.torch, "bernoulli", bernoulli)
    assert error(ours(case, base, models), theirs(case, base, models), dtype) <= 1.0
