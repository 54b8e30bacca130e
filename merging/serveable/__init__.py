"""Engines outside that serve adapters beside a base, one file each; found by scanning this folder.

An engine is its rules, as `merging.serving_rules` describes them; `merging.serveability` holds a patch against them.
"""

from collections.abc import Mapping
from functools import cache

from adapterhub.merging.registry import scan
from adapterhub.merging.serving_rules import ServingEngine


@cache
def engines() -> Mapping[str, ServingEngine]:
    """All serving engines by name."""
    return scan(__name__, ServingEngine)
