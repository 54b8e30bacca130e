"""mask: one bit an entry: which entries of a delta count.

Files: `patch.json` of kind "mask" and `patch.safetensors`, the native format of `native.py`.
The delta lies beside the bits, or is that of another patch (`delta_ref`): of the repository, or of the
recipe, so that the masks of many tasks share one delta.
Source: arXiv:2302.06600 (grafting), arXiv:2405.07813 (masks over a shared delta).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "mask",
    title="Select mask",
    summary="One bit an entry: which entries of a delta count",
    source="arXiv:2302.06600 (grafting), arXiv:2405.07813 (masks over a shared delta)",
)
