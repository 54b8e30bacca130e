"""prune: one bit an entry: which of the base's entries stay, all others becoming zero.

Files: `patch.json` of kind "prune" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:1803.03635, arXiv:2111.00160 (DSEE).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "prune",
    title="Pruning mask",
    summary="One bit an entry: which of the base's entries stay",
    source="arXiv:1803.03635, arXiv:2111.00160 (DSEE)",
)
