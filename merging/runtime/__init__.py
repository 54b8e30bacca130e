"""Patches that work only at run time: attached to a live model, and taken off again, one file a kind."""

from collections.abc import Mapping
from functools import cache

from adapterhub.merging.registry import RuntimeSpec, scan


@cache
def runtimes() -> Mapping[str, RuntimeSpec]:
    """All run-time kinds by the patch kind's name."""
    return scan(__name__, RuntimeSpec)
