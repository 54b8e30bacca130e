"""folder: a folder of this machine; or what `adapterhub export` wrote, with its repositories and revisions."""

from __future__ import annotations

from pathlib import Path

from adapterhub.cli.disk import LocalTree
from adapterhub.cli.errors import Missing
from adapterhub.cli.exported import MANIFEST, ExportedSource
from adapterhub.cli.source import Source, SourceKind, Wishes
from adapterhub.cli.trees import TreeSource


def open_folder(place: str, wishes: Wishes) -> Source:
    """The folder as a tree, or as an export where it holds the list of one. Raises Missing."""
    root = Path(place)
    if not root.is_dir():
        raise Missing(f"{place}: no such folder")
    return ExportedSource(root) if (root / MANIFEST).is_file() else TreeSource(LocalTree(root), wishes)


SPEC = SourceKind("folder", "A folder of this machine, or an export", "folder:PATH", open_folder)
