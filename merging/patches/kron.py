"""kron: Kronecker products on some parameters, written by trainers that do not use peft.

Files: `patch.json` of kind "kron" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2309.14859 (LoKr).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "kron",
    title="Kronecker delta",
    summary="Kronecker products on some parameters, in the native format",
    source="arXiv:2309.14859 (LoKr)",
    has_factors=True,
)
