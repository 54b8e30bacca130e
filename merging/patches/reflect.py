"""reflect: planes at which the inputs of some parameters are mirrored.

Files: `patch.json` of kind "reflect" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2405.17484 (HRA).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "reflect",
    title="Mirrored inputs",
    summary="Planes at which the inputs of some parameters are mirrored",
    source="arXiv:2405.17484 (HRA)",
)
