"""sum: terms of several kinds in one patch, such as sparse deltas on some parameters and masks on others.

Files: `patch.json` of kind "sum" and `patch.safetensors`, the native format of `native.py`.
The result is the base plus all of them.
Source: the native format.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "sum",
    title="Sum of terms",
    summary="Terms of several kinds in one patch",
    source="the native format",
)
