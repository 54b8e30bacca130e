"""scale: factors on rows and columns of some parameters, or of whole layers (soft masks over modules).

Files: `patch.json` of kind "scale" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2205.05638 sec. 3.3 (IA3).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "scale",
    title="Row and column factors",
    summary="Factors on rows and columns of some parameters",
    source="arXiv:2205.05638 sec. 3.3 (IA3)",
)
