"""lowrank_shared: factors A and B shared by all parameters, with coefficients d and b of each: S2-LoRA, VeRA.

Files: `patch.json` of kind "lowrank_shared" and `patch.safetensors`, the native format of `native.py`.
A bank may be larger than a parameter needs: its first rows and columns count. Ranks whose coefficient is zero, as
S2-LoRA's sparsity leaves most, add nothing and are left out of the terms.
Source: arXiv:2309.11756 (S2-LoRA), arXiv:2310.11454 (VeRA).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle
from adapterhub.merging.encodings import Array, as_array, as_floats
from adapterhub.merging.native import native_kind, read_patch
from adapterhub.merging.patch import Patch, SiteTerm
from adapterhub.merging.peft_adapter import computed

NAME = "lowrank_shared"


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The patch without idle ranks; coefficients are read here. Raises what `native.read_patch` raises."""
    patch = read_patch(folder, path, base, kind=NAME)
    return replace(patch, terms=tuple(one for term in patch.terms for one in _busy(term)))


def _busy(term: SiteTerm) -> Iterator[SiteTerm]:
    """The term with those of its ranks whose coefficient is not zero; nothing where all are."""
    if "d" not in term.fields:
        yield term
        return
    kept = np.flatnonzero(as_floats(term.fields["d"]))
    if len(kept) == term.fields["d"].numel:
        yield term
    elif len(kept):
        axes = {"d": 0, "A": 0, "B": 1}
        taken = {name: _taken(term.fields[name], kept, axis) for name, axis in axes.items()}
        yield replace(term, fields={**term.fields, **taken})


def _taken(handle: TensorHandle, kept: Array, axis: int) -> TensorHandle:
    """A handle on the entries `kept` along an axis, the numbers as they are stored."""
    shape = (*handle.shape[:axis], len(kept), *handle.shape[axis + 1 :])

    return computed(handle.name, handle.dtype, shape, lambda: np.take(as_array(handle), kept, axis))


SPEC = replace(
    native_kind(
        NAME,
        title="Low-rank delta, shared banks",
        summary="Coefficients of each parameter over factors A and B that all share",
        source="arXiv:2309.11756 (S2-LoRA), arXiv:2310.11454 (VeRA)",
        has_factors=True,
    ),
    read=read,
)
