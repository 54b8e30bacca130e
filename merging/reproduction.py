"""A result beside the one made by the same recipe before: equal, or which tensor first differs and by how much."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapterhub.merging.checkpoint import Folder, LocalFolder, TensorHandle, open_tensors
from adapterhub.merging.effects import read
from adapterhub.merging.execution import FILE as EXECUTION
from adapterhub.merging.execution import unlike

UNCOMPARED = ("README.md", EXECUTION)
"""Files of a result that say nothing of its values: a card may be edited, and the machine be another."""

_WEIGHTS = (".safetensors", ".gguf")

PIECE = 1 << 22
"""Entries that are compared at once."""

SAME, DIFFERS, MISSING, EXTRA = "same", "differs", "missing", "extra"
"""States of a file: missing from the committed result, and extra in it."""

_STATES = {DIFFERS: "differs", MISSING: "is missing there", EXTRA: "is there besides"}


@dataclass(frozen=True)
class Compared:
    """A result made again, beside the committed one.

    files: state by path. tensors: of the safetensors files, where any of these differs: {"differing", "of", "first":
    {"name", "found", "expected", "largest"}}; largest is the greatest absolute difference of two finite entries.
    """

    files: Mapping[str, str]
    tensors: Mapping[str, Any] | None

    @property
    def is_same(self) -> bool:
        """Whether every file that was made is there, byte by byte, and no weights are besides."""
        return all(state == SAME for state in self.files.values())


def verdict(made: Path, committed: Folder, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a result that was made again is the committed one, as JSON, with a sentence; and what may be why not.

    made: the folder. recorded: what the committed result says of its execution, {} where it says nothing.
    """
    found = compare(LocalFolder(made), committed)
    here = json.loads((made / EXECUTION).read_bytes())
    unalike = list(unlike(recorded, here)) if recorded else ["its execution is not recorded"]
    return {
        "is_same": found.is_same,
        "sentence": _sentence(found),
        "files": dict(found.files),
        "tensors": found.tensors,
        "execution": {"recorded": dict(recorded) or None, "here": here, "unalike": unalike},
    }


def _sentence(found: Compared) -> str:
    if found.is_same:
        return f"reproduced: all {len(found.files)} files are the same, byte by byte"
    differing = [f"{name} {_STATES[state]}" for name, state in found.files.items() if state != SAME]
    told = f"not reproduced: {', '.join(differing)}"
    if found.tensors is None:
        return told
    first = found.tensors["first"]
    if first is None:
        return f"{told}; all {found.tensors['of']} tensors are the same"
    told += f"; {found.tensors['differing']} of {found.tensors['of']} tensors differ, first {first['name']}: "
    if first["found"] != first["expected"]:
        return f"{told}{first['found'] or 'no such tensor'} now, {first['expected'] or 'no such tensor'} committed"
    largest = first["largest"]
    return told + ("no finite entries to compare" if largest is None else f"by up to {largest:.3g}")


def compare(made: Folder, committed: Folder) -> Compared:
    """Files by their digests, then the tensors of weights that differ. Raises BrokenContainer."""
    here, there = ({name for name in one.names() if name not in UNCOMPARED} for one in (made, committed))
    files = {name: _state(name, made, committed) for name in sorted(here)}
    files |= {name: EXTRA for name in sorted(there - here) if name.endswith(_WEIGHTS)}
    is_told = any(state != SAME and name.endswith(".safetensors") for name, state in files.items())
    return Compared(files, _tensors(made, committed) if is_told else None)


def _state(name: str, made: Folder, committed: Folder) -> str:
    if name not in committed.names():
        return MISSING
    return SAME if made.digest(name) == committed.digest(name) else DIFFERS


def _tensors(made: Folder, committed: Folder) -> Mapping[str, Any]:
    here, there = _handles(made), _handles(committed)
    names = sorted(here.keys() | there.keys())
    found = [told for name in names if (told := _difference(name, here.get(name), there.get(name)))]
    return {"differing": len(found), "of": len(names), "first": found[0] if found else None}


def _handles(folder: Folder) -> dict[str, TensorHandle]:
    found: dict[str, TensorHandle] = {}
    for file in (name for name in folder.names() if name.endswith(".safetensors")):
        found |= open_tensors(folder, file)[0]
    return found


def _difference(name: str, here: TensorHandle | None, there: TensorHandle | None) -> dict[str, Any] | None:
    """What a tensor differs in, None for equal bytes."""
    if here is None or there is None:
        return {"name": name, "found": _said(here), "expected": _said(there), "largest": None}
    if (here.dtype, here.shape) == (there.dtype, there.shape) and here.read() == there.read():
        return None
    largest = _largest(here, there) if here.shape == there.shape else None
    return {"name": name, "found": _said(here), "expected": _said(there), "largest": largest}


def _largest(here: TensorHandle, there: TensorHandle) -> float | None:
    """max |a - b| over entries that are finite in both, in float64; None where there are none, or no numbers."""
    both = [read(one).flatten() for one in (here, there)]
    greatest: float | None = None
    for a, b in _pieces(*both):
        gap = (a.double() - b.double()).abs()
        gap = gap[gap.isfinite()]
        if gap.numel():
            greatest = max(float(gap.max()), greatest or 0.0)
    return greatest


def _pieces(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, a.numel(), PIECE):
        yield a[start : start + PIECE], b[start : start + PIECE]


def _said(one: TensorHandle | None) -> str | None:
    return f"{one.dtype} {list(one.shape)}" if one is not None else None
