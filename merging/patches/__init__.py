"""Patch kinds: the file formats in which people store patches, one file each; found by scanning this folder."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.doubts import of_headers
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import Remembering, join, read_json
from adapterhub.merging.patch import Facts, Patch, PatchKind
from adapterhub.merging.registry import scan

_CONFIG = "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@cache
def kinds() -> Mapping[str, PatchKind]:
    """All patch kinds by name."""
    return scan(__name__, PatchKind)


def inspect(folder: Folder, leave_out: Collection[str] = ()) -> list[Facts]:
    """Facts of every patch and model in a folder and its sub-folders, by path; empty where none was recognised.

    What is recognised and contradicts itself is listed with its problems, and so is what says that it is an adapter and
    is none that any kind knows: of kind "unknown". leave_out: sub-folders that are not looked at, "" for the root.
    Raises BrokenContainer for safetensors files that are no sound ones.
    """
    here: dict[str, list[str]] = {}
    for name in folder.names():
        here.setdefault(name.rpartition("/")[0], []).append(name)
    for path in leave_out:
        here.pop(path, None)
    return [facts for path in sorted(here) for facts in _recognise(Remembering(folder, here[path]), path)]


def _recognise(folder: Folder, path: str) -> Iterator[Facts]:
    """Facts by every kind, in the order of names, that recognises what lies in `path`; else why none does."""
    recognised = (kind.recognise(folder, path) for kind in kinds().values())
    found = [_with_warnings(facts) for facts in recognised if facts is not None]
    unknown = None if found else _unknown(folder, path)
    return iter(found if unknown is None else [unknown])


def _with_warnings(facts: Facts) -> Facts:
    # Not `replace`: the file of that kind has its name in this package.
    return dataclasses.replace(facts, warnings=tuple(of_headers(facts)))


def _unknown(folder: Folder, path: str) -> Facts | None:
    """Facts of an adapter_config.json that is no kind's: its one problem says what was found and what to do."""
    file = join(path, _CONFIG)
    if file not in folder.names():
        return None
    try:
        config = read_json(folder, file)
    except InvalidPatch as error:
        is_pointer = folder.read(file, 0, len(_LFS_POINTER)) == _LFS_POINTER
        pointer = f"{file}: a Git LFS pointer instead of the file; fetch it with `git lfs pull` and push it again"
        return Facts(
            "unknown", f"{file} is no JSON object", path, (file,), problems=(pointer if is_pointer else str(error),)
        )
    said = config.get("peft_type")
    if said is None:
        keys = ", ".join(sorted(config)[:6]) or "none"
        why = f"has no peft_type and no key of another library that is known here (its keys: {keys[:200]})"
    else:
        near = get_close_matches(str(said).lower(), kinds(), 1, 0.85)
        hint = f"; did you mean {near[0].upper()}?" if near else ""
        why = f"says peft_type {str(said)[:60]!r}, which is no type that is known here{hint}"
    problem = f"{file}: {why}; it is stored as it is, and not merged"
    return Facts("unknown", f"{file} {why}", path, (file,), problems=(problem,))


def read(folder: Folder, path: str = "", *, base: Checkpoint | None = None) -> Patch:
    """The patch in `path` of a folder; where several kinds recognise one, that of the first name.

    With a base: sites carry its names, and every shape is checked.

    Raises InvalidPatch where no kind recognises it or it contradicts itself, NotFoldable, UnknownSite, ShapeMismatch.
    """
    facts = next(_recognise(folder, path), None)
    if facts is None:
        raise InvalidPatch(
            f"{path or 'the root folder'}: no patch of a known kind lies here; `adapterhub patch kinds` lists them"
        )
    if facts.kind not in kinds():
        raise InvalidPatch(facts.problems[0])
    return kinds()[facts.kind].read(folder, path, base)
