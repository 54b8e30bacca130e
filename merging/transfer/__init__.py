"""Ways to carry a patch from the base it was trained on to another, one file each; found by scanning this folder.

A strategy is a function `(port: Port) -> None` that writes the ported patch's files into `port.result`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from adapterhub.merging.registry import StrategySpec, scan

if TYPE_CHECKING:
    from adapterhub.merging.checkpoint import Checkpoint, Folder
    from adapterhub.merging.patch import Patch
    from adapterhub.merging.results import ResultFolder


@dataclass(frozen=True)
class Port:
    """One port to be done.

    patch: as read with its base, values still in `folder`. renamed: its metadata files, by path, as they read for the
    new base. source: None where the base it was trained on is not at hand.
    """

    patch: Patch
    folder: Folder
    renamed: Mapping[str, bytes]
    source: Checkpoint | None
    target: Checkpoint
    result: ResultFolder


@cache
def strategies() -> Mapping[str, StrategySpec]:
    """All transfer strategies by name."""
    return scan(__name__, StrategySpec)
