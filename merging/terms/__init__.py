"""Terms: what a patch does to one site of its base, one file each; found by scanning this folder."""

from collections.abc import Mapping
from functools import cache

from adapterhub.merging.registry import TermSpec, scan


@cache
def terms() -> Mapping[str, TermSpec]:
    """All terms by name."""
    return scan(__name__, TermSpec)
