"""circulant: circulant blocks on some parameters, written by trainers that do not use peft.

Files: `patch.json` of kind "circulant" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2407.19342 (C3A).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "circulant",
    title="Circulant delta",
    summary="Circulant blocks on some parameters, in the native format",
    source="arXiv:2407.19342 (C3A)",
)
