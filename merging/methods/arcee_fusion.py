"""arcee_fusion: take over of one model the entries that matter more than most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapterhub.merging.ops.sparsify import quantiles
from adapterhub.merging.registry import MethodSpec, NoParameters

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.registry import MergeSite


def arcee_fusion(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: NoParameters, site: MergeSite
) -> torch.Tensor:
    """Δ where its importance is at least the median plus 1.5 times the interquartile range, 0 elsewhere.

    Importance: |Δ| times the Kullback-Leibler divergence of the softmax of the tuned row from that of the base's row,
    rows along the last dimension. deltas: one, (…) float32 or float64, not modified; the result is of its shape and
    dtype; float64 inside. Quantiles are of all entries. Source: mergekit 0.1.5 arcee_fusion. Differs: there they are of
    a random million of them.
    """
    import torch

    delta = deltas[0]
    if not delta.numel():
        return delta.clone()
    base = site.base.double()
    after = torch.softmax(base + delta.double(), -1) + 1e-8
    before = torch.softmax(base, -1) + 1e-8
    divergence = (after * (after / before).log()).sum(-1, keepdim=True)
    importance = delta.double().abs() * divergence
    low, middle, high = quantiles(importance, (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + 1.5 * (high - low), delta, torch.zeros_like(delta))


SPEC = MethodSpec(
    name="arcee_fusion",
    title="Arcee Fusion",
    summary="The entries of one model that matter more than most",
    source="mergekit 0.1.5",
    function=arcee_fusion,
    takes_site=True,
    inputs=(1, 1),
    takes_weights=False,
)
