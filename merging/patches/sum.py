"""sum: terms of several kinds in one patch, such as sparse deltas on some parameters and masks on others.

Files: `patch.json` of kind "sum" and `patch.safetensors`, the native format of `native.py`. The result is the base plus
all of them.
"""

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.native import read_patch, rebase, recognise
from adapterhub.merging.patch import Facts, Patch, PatchKind


def _recognise(folder: Folder, path: str) -> Facts | None:
    return recognise(folder, path, "sum")


def _read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    return read_patch(folder, path, base, kind="sum")


SPEC = PatchKind(
    name="sum",
    title="Sum of terms",
    summary="Terms of several kinds in one patch",
    source="the native format",
    recognise=_recognise,
    read=_read,
    rebase=rebase,
)
