"""hadamard: entrywise products of low-rank matrices, written by trainers that do not use peft.

Files: `patch.json` of kind "hadamard" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2108.06098 (FedPara, LoHa).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "hadamard",
    title="Hadamard delta",
    summary="Entrywise products of low-rank matrices, in the native format",
    source="arXiv:2108.06098 (FedPara, LoHa)",
    has_factors=True,
)
