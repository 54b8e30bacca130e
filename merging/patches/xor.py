"""xor: the bits in which a fine-tuned model differs from its base: kept exactly, of use on that base alone.

Files: `patch.json` of kind "xor" and `patch.safetensors`, the native format of `native.py`.
Source: the native format.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "xor",
    title="Exact fine-tune",
    summary="The bits in which a fine-tuned model differs from its base",
    source="the native format",
)
