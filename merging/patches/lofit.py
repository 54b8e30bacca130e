"""lofit: z + k · (A ⊙ z + v) on single attention heads, before the output projection.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It becomes weights of a base whose output projections have a bias, or where only A is there; of others it runs:
`runtime/lofit.py`.

Source: arXiv:2406.01563 sec. 3.
"""

from dataclasses import replace

from adapterhub.merging.checkpoint import Checkpoint, Folder
from adapterhub.merging.head_edits import folded, missing_bias
from adapterhub.merging.native_runtime import read as read_at_run_time
from adapterhub.merging.native_runtime import read_runtime, runtime_kind
from adapterhub.merging.patch import NOT_FOLDABLE, Patch
from adapterhub.merging.representations import LOFIT


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The patch; with a base that can hold them, its terms. Raises InvalidPatch, UnknownSite, ShapeMismatch."""
    patch = read_at_run_time(folder, path, base, LOFIT)
    if base is None:
        return patch
    edits = read_runtime(folder, path, LOFIT).modules
    missing = missing_bias(edits, base)
    if missing is not None:
        return replace(patch, facts=replace(patch.facts, detail={**patch.facts.detail, NOT_FOLDABLE: missing}))
    return replace(patch, facts=replace(patch.facts, effect="affine"), terms=tuple(folded(edits, base)))


SPEC = replace(
    runtime_kind(
        LOFIT,
        title="LoFiT",
        summary="Offsets and scales of single attention heads",
        source="arXiv:2406.01563 sec. 3",
    ),
    read=read,
    folds="own",
)
