"""ept: a short prompt, enriched by low-rank updates of the embeddings and projected into subspaces behind a gate.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It acts at run time alone: `runtime/ept.py`.

Source: arXiv:2405.11464.
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import EPT

SPEC = runtime_kind(
    EPT,
    title="EPT",
    summary="A short prompt fused with two low-rank matrices and projected into gated subspaces",
    source="arXiv:2405.11464",
)
