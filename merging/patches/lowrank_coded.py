"""lowrank_coded: low-rank deltas whose factors are whole numbers of a few bits, large directions of more of them.

Files: `patch.json` of kind "lowrank_coded" and `patch.safetensors`, the native format of `native.py`; `native.coded`
makes such terms.
Source: arXiv:2406.08903 (Delta-CoMe).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "lowrank_coded",
    title="Mixed-precision delta",
    summary="Singular directions of a delta in a few bits each, the largest in more",
    source="arXiv:2406.08903 (Delta-CoMe)",
)
