"""What the inputs of a merge carry of their data: found beside each patch, and refused by name where it is missing."""

import re
from collections.abc import Mapping
from dataclasses import replace

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.canonical import Input, Merged, Part, Patched
from adapterhub.merging.recipes.nodes import Delta, Ref
from adapterhub.merging.statistics import FILE, SiteStatistics, Statistics, open_statistics

_TABLES = re.compile(r"(embed[a-z_]*|wte|wpe|shared|bias_table|relative_attention_bias)\.weight$")
"""Matrices that are looked up in, and multiply no input: they have no Gram."""


class Carried:
    """The statistics of the patches of one recipe, each file opened once."""

    def __init__(self, inputs: Mapping[Ref, Input], base: Checkpoint) -> None:
        self._inputs = inputs
        self._base = base
        self._opened: dict[Ref, Statistics] = {}

    def at(self, site: str, leaf: Merged) -> tuple[SiteStatistics, ...]:
        """What the method asks for at a parameter, one an input; () where it asks for nothing.

        Raises NotFoldable for an input that is no single patch or model, and for one that does not carry it.
        """
        wanted = methods()[leaf.method].statistics
        if not wanted:
            return ()
        # An output embedding that a patch parts from the input's is in no checkpoint yet; it is a table as before.
        shape = self._base.tensors[site].shape if site in self._base.tensors else ()
        if wanted == "gram" and (len(shape) != 2 or _TABLES.search(site)):
            return tuple(SiteStatistics() for _ in leaf.inputs)
        found = []
        for parts in leaf.inputs:
            ref = _source(leaf.method, parts)
            carried = self._open(ref, leaf.method).at(site, shape)
            kept = replace(carried, fisher=None) if wanted == "gram" else replace(carried, gram=None)
            if not kept.handles:
                raise NotFoldable(
                    f"{self._inputs[ref].name}: its {FILE} has no {_WORDS[wanted]} of {site}, which {leaf.method} "
                    f"takes; {_COLLECT}"
                )
            found.append(kept)
        return tuple(found)

    def _open(self, ref: Ref, method: str) -> Statistics:
        if ref not in self._opened:
            one = self._inputs[ref]
            opened = open_statistics(one.folder, one.path)
            if opened is None:
                raise NotFoldable(f"{one.name}: has no {FILE} beside it, which {method} takes; {_COLLECT}")
            self._opened[ref] = opened
        return self._opened[ref]


_WORDS = {"gram": "Gram of the inputs", "fisher": "Fisher"}
_COLLECT = (
    "collect it with adapterhub.merging.training.statistics on the model with this patch and samples of its data, for "
    "all parameters that the merge touches, and push the file beside the patch"
)


def _source(method: str, parts: tuple[Part, ...]) -> Ref:
    """The one patch or model that an input is. Raises NotFoldable for sums and what else has no data of its own."""
    if len(parts) == 1:
        match parts[0].leaf:
            case Patched(ref=ref):
                return ref
            case Delta(model=ref):
                return ref
    raise NotFoldable(
        f"{method}: takes patches and models that carry {FILE}, each an input of its own; a sum of several, or the "
        "result of another method, has none"
    )
