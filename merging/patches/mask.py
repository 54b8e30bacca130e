"""mask: one bit an entry: which entries of a delta count.

Files: `patch.json` of kind "mask" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2302.06600 (grafting a fine-tuned region onto its base).
"""

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.native import read_patch, rebase, recognise
from adapterhub.merging.patch import Facts, Patch, PatchKind


def _recognise(folder: Folder, path: str) -> Facts | None:
    return recognise(folder, path, "mask")


def _read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    return read_patch(folder, path, base, kind="mask")


SPEC = PatchKind(
    name="mask",
    title="Select mask",
    summary="One bit an entry: which entries of a delta count",
    source="arXiv:2302.06600 (grafting a fine-tuned region onto its base)",
    recognise=_recognise,
    read=_read,
    rebase=rebase,
)
