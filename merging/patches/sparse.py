"""sparse: values at some entries of some parameters, everything else untouched.

Files: `patch.json` of kind "sparse" and `patch.safetensors`, the native format of `native.py`.
Source: shape and index encodings follow peft's Supertuning and SHiRA, arXiv:2406.13175.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "sparse",
    title="Sparse delta",
    summary="Values at some entries of some parameters, everything else untouched",
    source="shape and index encodings follow peft's Supertuning and SHiRA, arXiv:2406.13175",
)
