"""lowrank_shared: factors A and B shared by all parameters, with coefficients d and b of each: S2-LoRA, VeRA.

Files: `patch.json` of kind "lowrank_shared" and `patch.safetensors`, the native format of `native.py`.
A bank may be larger than a parameter needs: its first rows and columns count.
Source: arXiv:2309.11756 (S2-LoRA), arXiv:2310.11454 (VeRA).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "lowrank_shared",
    title="Low-rank delta, shared banks",
    summary="Coefficients of each parameter over factors A and B that all share",
    source="arXiv:2309.11756 (S2-LoRA), arXiv:2310.11454 (VeRA)",
    has_factors=True,
)
