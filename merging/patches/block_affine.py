"""block_affine: square blocks V of some parameters become V + V·B + B.

Files: `patch.json` of kind "block_affine" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2409.15371 (MiSS, bat).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "block_affine",
    title="Affine blocks",
    summary="Square blocks V of some parameters as V + V·B + B",
    source="arXiv:2409.15371 (MiSS, bat)",
)
