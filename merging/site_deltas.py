"""The deltas of a patch, site by site, measured without forming them where their terms allow it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.merging.effects import effects, part
from adapterhub.merging.ops.lowrank import Factors, concatenate, factors_of, inner_product
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.patch import Patch, SiteTerm


@dataclass(frozen=True)
class SiteDelta:
    """All terms of one patch on one site."""

    site: str
    terms: tuple[SiteTerm, ...]

    @property
    def stored(self) -> str:
        """The base's tensor to start from: the site, or what an output embedding is tied to."""
        return str(self.terms[0].options.get("tied_source", self.site))

    @property
    def is_created(self) -> bool:
        """Whether the patch brings a parameter that its base does not have."""
        return all(term.options.get("create") for term in self.terms)

    @property
    def is_reinitialised(self) -> bool:
        """Whether the parameter was drawn anew before training, so that a difference to its base means nothing."""
        return any(term.options.get("reinitialised") for term in self.terms)

    @property
    def replaces(self) -> bool:
        """Whether the patch puts a stored value in the base's place, and does nothing else."""
        return all(term.term == "replace" for term in self.terms)

    @property
    def needs_base(self) -> bool:
        """Whether the delta cannot be told without the base's values."""
        return not all(terms()[term.term].is_additive for term in self.terms)

    def factors(self) -> Factors | None:
        """The delta as a product of float32 factors of the site as stored; None unless all terms are low-rank."""
        if any(term.term != "lowrank" for term in self.terms):
            return None
        return concatenate(
            [
                factors_of(one.fields, one.weight, transpose=bool(one.options.get("transpose")))
                for one in map(part, self.terms)
            ]
        )

    def dense(self, W: torch.Tensor) -> torch.Tensor:
        """The delta at a base with values W (float32), in its shape."""
        return effects([(1.0, term) for term in self.terms], W).change(W)

    def norm(self, W: torch.Tensor | None = None) -> float | None:
        """‖Δ‖ in Frobenius norm; None where that needs the base's values and W (float32) is not given."""
        factors = self.factors()
        if factors is not None:
            return math.sqrt(max(inner_product(factors, factors), 0.0))
        if len(self.terms) == 1 and not self.needs_base:
            return terms()[self.terms[0].term].norm(part(self.terms[0]), ())
        return float(self.dense(W).double().norm()) if W is not None else None


def site_deltas(patch: Patch) -> Mapping[str, SiteDelta]:
    """The patch's deltas by site, sorted."""
    by_site: dict[str, list[SiteTerm]] = {}
    for term in patch.terms:
        by_site.setdefault(term.site, []).append(term)
    return {site: SiteDelta(site, tuple(found)) for site, found in sorted(by_site.items())}
