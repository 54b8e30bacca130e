"""Pickles of weights as safetensors, on the user's own machine: what is opened is opened in a confined child alone.

The child has no network, a cap on memory and time, and torch's weights_only reader. What that reader refuses is
refused here too, whoever asks. The pickle itself is never changed.
Source: torch `torch.load`, weights_only; huggingface/safetensors `bindings/python/convert.py` for the files' names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from adapterhub.merging import sandbox
from adapterhub.merging.checkpoint import LocalFolder, TensorHandle, open_tensors
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.pickle_child import TENSORS, VALUES
from adapterhub.merging.pickle_names import SUFFIXES, is_pickle
from adapterhub.merging.results import ResultFolder

if TYPE_CHECKING:
    from adapterhub.merging.folders import Folder

CHILD = "adapterhub.merging.pickle_child"

_RENAMED: Mapping[str, str] = {
    "adapter_model.bin": "adapter_model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
    "pytorch_model_adapter_fusion.bin": "model_adapter_fusion.safetensors",
}
"""What the libraries call the safetensors file that they read in a pickle's place."""

_NO_WEIGHTS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")
"""Beginnings of names that trainers write beside the weights: left out."""

LEAST_MEMORY_BYTES = 3 << 30
SECONDS = 900


@dataclass(frozen=True)
class Converted:
    """What became of a folder. files: (pickle, what it is now, its tensors' number). left_out: other pickles."""

    files: tuple[tuple[str, str, int], ...]
    left_out: tuple[str, ...]


def to_safetensors(folder: Folder, out: Path, *, only: str | None = None) -> Converted:
    """Write a copy of a folder into `out` in which pickles of weights are safetensors; what is not a pickle is copied.

    only: the one file to convert, and then nothing else is written. Raises InvalidPatch for a pickle that holds more
    than tensors, or is not read within the limits; FileExistsError.
    """
    names = [only] if only else list(folder.names())
    pickled = [name for name in names if is_pickle(name) and not _is_left_out(name)]
    if not pickled:
        raise InvalidPatch(f"no pickle of weights lies here; names that end with {', '.join(SUFFIXES)} are looked for")
    files = []
    with ResultFolder(out) as result:
        for name in names:
            if name in pickled:
                target = _target(name)
                if target in names:
                    raise InvalidPatch(f"{name}: {target} lies beside it already; convert one file, or remove either")
                with opened(folder, name) as (tensors, values, made):
                    _check_flat(name, tensors, values)
                    result.copy(made, TENSORS, target)
                    files.append((name, target, len(tensors)))
            elif not is_pickle(name):
                result.copy(folder, name, name)
        result.publish()
    return Converted(tuple(files), tuple(name for name in names if is_pickle(name) and name not in pickled))


@contextmanager
def opened(
    folder: Folder, name: str, *, joint: str = ".", lists: bool = False
) -> Iterator[tuple[Mapping[str, TensorHandle], Mapping[str, Any], Folder]]:
    """The tensors and the other values of a pickle by their keys, and the folder where they lie until the block ends.

    joint, lists: as in `pickle_child.convert`. Raises InvalidPatch.
    """
    with TemporaryDirectory(prefix="adapterhub-pickle-") as made:
        here = Path(made)
        memory_bytes = LEAST_MEMORY_BYTES + 2 * folder.size(name)  # a file of old torch is read whole
        request = {"path": str(folder.path(name).resolve()), "joint": joint, "lists": lists}
        try:
            said = sandbox.call(CHILD, request, here, sandbox.Limits(memory_bytes, SECONDS))
        except sandbox.ChildFailed as error:
            raise InvalidPatch(f"{name}: not converted, as it could not be read safely: {_reason(error)}") from error
        written = LocalFolder(here)
        tensors = open_tensors(written, TENSORS)[0] if said["tensors"] else {}
        yield tensors, json.loads((here / VALUES).read_text()), written


def _reason(error: sandbox.ChildFailed) -> str:
    if error.kind == "UnpicklingError":
        return "it holds more than tensors, so loading it could run code; ask its author for safetensors"
    if error.kind in ("MemoryError", "TimeoutError"):
        return "it takes more memory or time than its size allows for"
    return f"{error.kind or 'its reader'}: {error}"


def _is_left_out(name: str) -> bool:
    return PurePosixPath(name).name.startswith(_NO_WEIGHTS)


def _target(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(_RENAMED.get(path.name, path.stem + ".safetensors")))


def _check_flat(name: str, tensors: Mapping[str, TensorHandle], values: Mapping[str, Any]) -> None:
    if not tensors:
        raise InvalidPatch(f"{name}: holds no tensor")
    if values:
        first = next(iter(values))
        raise InvalidPatch(f"{name}: {first[:200]} is {str(values[first])[:80]!r}, no tensor; a state dict is expected")
