"""model_stock: the mean of fine-tuned models, drawn towards their base by how far they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sums import weighted_sum
from adapterhub.merging.registry import MethodSpec, parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """What model_stock may be told."""

    filter_wise: bool = parameter(False, "measure agreement for each row instead of the whole tensor")


def model_stock(deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Parameters) -> torch.Tensor:
    """t · mean Δ with t = N·cos θ / (1 + (N - 1)·cos θ), cos θ the mean cosine of all pairs of the N deltas.

    deltas: two or more, each (…), float32 or float64, not modified; the result is of their shape and dtype; cosines in
    float64. Parallel deltas give their mean, orthogonal ones nothing; where t has no denominator it is 0. A delta of no
    length counts as orthogonal to all. Source: arXiv:2403.19522 sec. 4, eq. 5, as mergekit 0.1.5 extends it to N > 2.
    """
    import torch

    count = len(deltas)
    dim = -1 if parameters.filter_wise and deltas[0].dim() > 1 else None
    wide = [delta.double() for delta in deltas]
    cosines = [_cosine(wide[i], wide[j], dim) for i in range(count) for j in range(i)]
    mean = torch.stack(cosines).mean(0)
    below = 1 + (count - 1) * mean
    t = torch.where(below.abs() < 1e-6, 0.0, count * mean / below)
    return (weighted_sum(wide, [1 / count] * count) * t).to(deltas[0].dtype).view(deltas[0].shape)


def _cosine(a: torch.Tensor, b: torch.Tensor, dim: int | None) -> torch.Tensor:
    """cos of the angle between two tensors, (1,) or, along `dim`, with that dimension 1."""
    if dim is None:
        a, b, dim = a.reshape(-1), b.reshape(-1), 0
    lengths = (a.norm(dim=dim, keepdim=True) * b.norm(dim=dim, keepdim=True)).clamp_min(1e-6)
    cosine: torch.Tensor = ((a * b).sum(dim, keepdim=True) / lengths).clamp(-1.0, 1.0)
    return cosine


SPEC = MethodSpec(
    name="model_stock",
    title="Model Stock",
    summary="The mean of models, drawn to the base by their disagreement",
    source="arXiv:2403.19522",
    function=model_stock,
    parameters=Parameters,
    laws=frozenset({"commutative", "idempotent"}),
    inputs=(2, None),
    takes_weights=False,
)
