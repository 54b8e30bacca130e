"""Low-rank convolutions that keep a small core: Σ t[i, j]·a[i]·b[j]."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from adapterhub.merging.ops.lowrank import Factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def tucker_factors(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None) -> Factors:
    """a·b as float32 factors, left (out, r) and right (r, in) or, with a core, right (r, in·k·k).

    Without a core a (out, r) and b (r, in) are the factors. With one, (r, r, k, k) and possibly k = 1, a is (r, out), b
    (r, in), and the matrix is W[p, (q, k, l)] = Σ core[i, j, k, l]·a[i, p]·b[j, q]. Inputs are not modified.
    Source: arXiv:2108.06098 prop. 3; peft `tuners/lokr/layer.py`, make_weight_cp.
    """
    import torch

    if core is None:
        return Factors(a.float(), b.float())
    right = torch.einsum("ijkl,jq->iqkl", core.float(), b.float()).flatten(1).contiguous()  # torch.kron needs it so
    # A fresh tensor: turned, one of a single rank passes for contiguous with strides that torch.kron cannot take.
    return Factors(a.float().T.clone(memory_format=torch.contiguous_format), right)


def tucker_sizes(a: Sequence[int], b: Sequence[int], core: Sequence[int] | None) -> tuple[int, int, int]:
    """(out, r, in or in·k·k) of what `tucker_factors` gives, from the shapes of its arguments."""
    if core is None:
        return a[0], b[0], prod(b[1:])
    return a[1], a[0], b[1] * prod(core[2:])
