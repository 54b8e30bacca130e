"""rotate: orthogonal blocks, stored as they are, that turn the inputs of some parameters.

Files: `patch.json` of kind "rotate" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2306.07280 (OFT).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "rotate",
    title="Rotated inputs",
    summary="Orthogonal blocks that turn the inputs of some parameters",
    source="arXiv:2306.07280 (OFT)",
)
