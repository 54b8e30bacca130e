"""replace: whole new values of some parameters, such as re-initialised top layers; they never port as deltas.

Files: `patch.json` of kind "replace" and `patch.safetensors`, the native format of `native.py`.
Source: peft modules_to_save.
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "replace",
    title="Replaced parameters",
    summary="Whole new values of some parameters",
    source="peft modules_to_save",
)
