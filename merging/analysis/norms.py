"""norms: how much a patch changes each site, for the picture layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.merging.effects import read
from adapterhub.merging.registry import AnalysisSpec
from adapterhub.merging.replicas import replicated
from adapterhub.merging.site_deltas import SiteDelta, site_deltas

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint
    from adapterhub.merging.patch import Patch


def layer_norms(patch: Patch, base: Checkpoint | None = None) -> Sequence[Mapping[str, Any]]:
    """‖Δ‖ of every site in Frobenius norm, and its share of ‖W‖ where the base is given.

    Rows: site; norm, None where it depends on a base that is not given; relative, ‖Δ‖/‖W‖ or None. Low-rank, sparse and
    mask deltas are measured without forming them.
    """
    base = replicated(base, patch.layer_ranges) if base is not None else None
    return [_row(site, base) for site in site_deltas(patch).values()]


def _row(site: SiteDelta, base: Checkpoint | None) -> Mapping[str, Any]:
    handle = base.tensors.get(site.stored) if base is not None else None
    W = read(handle).float() if handle is not None else None
    norm = site.norm(W)
    size = float(W.double().norm()) if W is not None else 0.0
    return {"site": site.site, "norm": norm, "relative": norm / size if norm is not None and size else None}


SPEC = AnalysisSpec(
    name="norms",
    title="Change per site",
    summary="How much a patch changes each site, in Frobenius norm",
    source="‖Δ‖ by inner products of factors, for low-rank terms",
    function=layer_norms,
)
