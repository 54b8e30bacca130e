"""spectra: the singular values of every low-rank delta, and how many directions it really uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.merging.ops.lowrank import effective_rank, singular_values
from adapterhub.merging.registry import AnalysisSpec
from adapterhub.merging.site_deltas import site_deltas

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint
    from adapterhub.merging.patch import Patch


def spectra(patch: Patch, base: Checkpoint | None = None) -> Sequence[Mapping[str, Any]]:
    """Singular values of every low-rank site, largest first, by the SVD of an r x r core; other sites have no row.

    Rows: site; rank, the stored one; singular_values; effective_rank, exp of the entropy of the normalised values.
    base: not read. Source: Roy & Vetterli, The effective rank, EUSIPCO 2007.
    """
    rows = []
    for site in site_deltas(patch).values():
        factors = site.factors()
        if factors is None:
            continue
        values = singular_values(factors)
        rows.append(
            {
                "site": site.site,
                "rank": factors.left.shape[1],
                "singular_values": values.tolist(),
                "effective_rank": effective_rank(values),
            }
        )
    return rows


SPEC = AnalysisSpec(
    name="spectra",
    title="Spectra",
    summary="Singular values and effective rank of low-rank sites",
    source="Roy & Vetterli, The effective rank, EUSIPCO 2007",
    function=spectra,
)
