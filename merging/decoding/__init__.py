"""Operators that compose models while they decode, one file each; found by scanning this folder."""

from collections.abc import Mapping
from functools import cache

from adapterhub.merging.registry import OperatorSpec, scan


@cache
def operators() -> Mapping[str, OperatorSpec]:
    """All operators by name."""
    return scan(__name__, OperatorSpec)
