"""dora: low-rank directions with a magnitude of each output, written by trainers that do not use peft.

Files: `patch.json` of kind "dora" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2402.09353 (DoRA).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "dora",
    title="Magnitude and direction",
    summary="Low-rank directions with a magnitude of each output, in the native format",
    source="arXiv:2402.09353 (DoRA)",
)
