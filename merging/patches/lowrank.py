"""lowrank: low-rank factors A and B on some parameters, written by trainers that do not use peft.

Files: `patch.json` of kind "lowrank" and `patch.safetensors`, the native format of `native.py`.
What peft can hold is better kept as the kind `lora`.
Source: arXiv:2106.09685 (LoRA).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "lowrank",
    title="Low-rank delta",
    summary="Low-rank factors A and B on some parameters, in the native format",
    source="arXiv:2106.09685 (LoRA)",
    has_factors=True,
)
