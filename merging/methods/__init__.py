"""Merge methods: many deltas into one, one file each; found by scanning this folder."""

from collections.abc import Mapping
from functools import cache

from adapterhub.merging.registry import MethodSpec, scan


@cache
def methods() -> Mapping[str, MethodSpec]:
    """All merge methods by name."""
    return scan(__name__, MethodSpec)
