"""sparse: values at some entries of some parameters, everything else untouched.

Files: `patch.json` of kind "sparse" and `patch.safetensors`, the native format of `native.py`.
Source: shape and index encodings follow peft's Supertuning and SHiRA, arXiv:2406.13175.
"""

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.native import read_patch, rebase, recognise
from adapterhub.merging.patch import Facts, Patch, PatchKind


def _recognise(folder: Folder, path: str) -> Facts | None:
    return recognise(folder, path, "sparse")


def _read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    return read_patch(folder, path, base, kind="sparse")


SPEC = PatchKind(
    name="sparse",
    title="Sparse delta",
    summary="Values at some entries of some parameters, everything else untouched",
    source="shape and index encodings follow peft's Supertuning and SHiRA, arXiv:2406.13175",
    recognise=_recognise,
    read=_read,
    rebase=rebase,
)
