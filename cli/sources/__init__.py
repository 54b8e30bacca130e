"""Places to import from, one file each; found by scanning this folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from adapterhub.cli.errors import Misused
from adapterhub.cli.source import Source, SourceKind, Wishes
from adapterhub.merging.registry import scan


@cache
def kinds() -> Mapping[str, SourceKind]:
    """All kinds of source by name."""
    return scan(__name__, SourceKind)


def open_source(text: str, wishes: Wishes) -> Source:
    """The source that "kind:place" names. Raises Misused for an unknown kind or no place."""
    name, _, place = text.partition(":")
    kind = kinds().get(name)
    if kind is None or not place:
        known = ", ".join(each.example for each in kinds().values())
        raise Misused(f"{text!r}: write where to import from as one of {known}")
    return kind.open(place, wishes)
