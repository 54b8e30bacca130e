"""Patch kinds: the file formats in which people store patches, one file each; found by scanning this folder."""

from collections.abc import Iterator, Mapping
from functools import cache

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import Remembering
from adapterhub.merging.patch import Facts, Patch, PatchKind
from adapterhub.merging.registry import scan


@cache
def kinds() -> Mapping[str, PatchKind]:
    """All patch kinds by name."""
    return scan(__name__, PatchKind)


def inspect(folder: Folder) -> list[Facts]:
    """Facts of every patch and model in a folder and its sub-folders, by path; empty where none was recognised.

    What is recognised and contradicts itself is listed with its problems. Raises BrokenContainer for safetensors files
    that are no sound ones.
    """
    here: dict[str, list[str]] = {}
    for name in folder.names():
        here.setdefault(name.rpartition("/")[0], []).append(name)
    return [facts for path in sorted(here) for facts in _recognise(Remembering(folder, here[path]), path)]


def _recognise(folder: Folder, path: str) -> Iterator[Facts]:
    """Facts by every kind, in the order of names, that recognises what lies in `path`."""
    recognised = (kind.recognise(folder, path) for kind in kinds().values())
    return (facts for facts in recognised if facts is not None)


def read(folder: Folder, path: str = "", *, base: Checkpoint | None = None) -> Patch:
    """The patch in `path` of a folder; where several kinds recognise one, that of the first name.

    With a base: sites carry its names, and every shape is checked.

    Raises InvalidPatch where no kind recognises it or it contradicts itself, NotFoldable, UnknownSite, ShapeMismatch.
    """
    facts = next(_recognise(folder, path), None)
    if facts is None:
        known = ", ".join(kinds())
        raise InvalidPatch(f"{path or 'the root folder'}: no patch of a known kind ({known}) lies here")
    return kinds()[facts.kind].read(folder, path, base)
