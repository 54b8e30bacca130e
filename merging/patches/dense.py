"""dense: a whole delta on some parameters, the others untouched; half fine-tuning leaves such patches.

Files: `patch.json` of kind "dense" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2212.04089 (task vectors), arXiv:2404.18466 (half fine-tuning: the subset that moved).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "dense",
    title="Dense delta",
    summary="A whole delta on some parameters",
    source="arXiv:2212.04089 (task vectors), arXiv:2404.18466 (half fine-tuning: the subset that moved)",
)
