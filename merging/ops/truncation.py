"""Merging whole deltas and cutting what comes out to a rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.ops import spectral
from adapterhub.merging.ops.lowrank import Factors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    Merge = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def of_products(products: Sequence[Factors], weights: Sequence[float], merge: Merge, rank: int) -> Factors:
    """What `merge` makes of the products written out, at most of `rank`, or for 0 of the largest rank of them; float64.

    The whole singular value goes into the left factor; a single product comes back whole, times its weight.
    Source: Eckart-Young; peft 0.21.2 `tuners/lora/model.py`, _check_add_weighted_adapter.
    """
    if len(products) == 1:
        return Factors(products[0].left.double() * weights[0], products[0].right.double())
    dense = [one.left.double() @ one.right.double() for one in products]
    u, s, v = spectral.of_dense(merge(dense)).head(rank or max(one.left.shape[1] for one in products))
    return Factors(u * s, v.T)


def of_dense(deltas: Sequence[torch.Tensor], weights: Sequence[float], merge: Merge, rank: int) -> torch.Tensor:
    """The same of deltas of one shape and dtype, whose ranks are those that they have; the result has both.

    What is no matrix, such as a bias, is merged and not cut.
    """
    first = deltas[0]
    if len(deltas) == 1:
        return first * weights[0]
    if first.dim() < 2 or not first.numel():
        return merge(deltas)
    left, right = of_products([spectral.of_dense(one.flatten(1)).factors() for one in deltas], weights, merge, rank)
    return (left @ right).to(first.dtype).view(first.shape)
