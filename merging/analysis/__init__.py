"""Analyses of tensors, one file each; found by scanning this folder.

An analysis takes a patch and, where it is at hand, its base's checkpoint, and gives a list of rows of JSON values, one
a site, sorted by site.
"""

from collections.abc import Mapping
from functools import cache

from adapterhub.merging.registry import AnalysisSpec, scan


@cache
def analyses() -> Mapping[str, AnalysisSpec]:
    """All analyses by name."""
    return scan(__name__, AnalysisSpec)
