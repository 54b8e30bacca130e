"""lofit: z + k · (A ⊙ z + v) on single attention heads, before the output projection.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It acts at run time alone: `runtime/lofit.py`.

Source: arXiv:2406.01563 sec. 3.
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import LOFIT

SPEC = runtime_kind(
    LOFIT,
    title="LoFiT",
    summary="Offsets and scales of single attention heads",
    source="arXiv:2406.01563 sec. 3",
)
